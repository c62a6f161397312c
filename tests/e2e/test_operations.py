"""Two workers under `bentoml serve`: they share the machine, count together, and drain at SIGTERM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.server import ROOT, Server, serving

LONG = {"model": "demo", "prompt": "Hello", "max_tokens": 900, "ignore_eos": True}
SHORT = {"model": "demo", "messages": [{"role": "user", "content": "What is 17 + 25?"}]}


TRACED = """
import json
from starlette.testclient import TestClient
import service
from bentoml._internal.configuration.containers import BentoMLContainer

with TestClient(service.LanguageModel.to_asgi(is_main=True)) as client:
    body = {"model": "demo", "messages": [{"role": "user", "content": "What is 17 + 25?"}]}
    reply = client.post("/v1/chat/completions", json=body, headers={"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"})
provider = BentoMLContainer.tracer_provider.get()
provider.force_flush()
(processor,) = provider._active_span_processor._span_processors
spans = processor.span_exporter.get_finished_spans()
names = {span.context.span_id: span.name for span in spans}
told = [[span.name, names.get(span.parent.span_id) if span.parent else None, hex(span.context.trace_id)] for span in spans]
print(json.dumps([reply.status_code, told]))
"""
TRACING = """
services:
  tracing:
    exporter_type: in_memory
    sample_rate: 1.0
"""


def look(server: Server) -> dict[str, Any]:
    """What `bento-kv top` says."""
    command = [sys.executable, "-m", "bento_kv", "top", server.url, "--json", "--interval", "0.1"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)


def wait_until(condition: Callable[[], bool]) -> None:
    """A guard, not a measurement."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.1)


def test_two_workers_share_count_together_and_drain(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    arguments = [f"--arg={it}" for it in ("workers=2", "slots=4", "max_queue=64", f"event_log={events}")]
    with serving("service:LanguageModel", *arguments, log=tmp_path / "log") as server, ThreadPoolExecutor(24) as pool:
        wait_until(lambda: look(server)["slots"] == 4)
        workers = server.workers()
        assert len(workers) == 2

        def ask(_: int) -> str:
            reply = httpx.post(f"{server.url}/v1/chat/completions", json=SHORT, timeout=60).json()
            return reply["choices"][0]["message"]["content"]

        assert set(pool.map(ask, range(24))) == {"42"}
        seen = look(server)
        assert (seen["state"], seen["proven"]) == ("ready", True)
        assert (seen["ended"]["stop"], seen["running"], seen["waiting"]) == (24, 0, 0)

        streams = [
            pool.submit(httpx.post, f"{server.url}/v1/completions", json={**LONG, "stream": True}, timeout=120)
            for _ in range(12)
        ]
        # At least one worker's slots: the system may hand all connections to one of them.
        wait_until(lambda: look(server)["running"] >= 2)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx.get(f"{server.url}/readyz").status_code == 503)
        assert httpx.get(f"{server.url}/livez").status_code == 200
        refused = httpx.post(f"{server.url}/v1/completions", json=LONG, timeout=60)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "service_unavailable"
        assert int(refused.headers["retry-after"]) >= 1
        for stream in streams:
            text = stream.result().text
            assert '"finish_reason":"length"' in text
            assert text.endswith("data: [DONE]\n\n")
        server.process.wait(60)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/readyz")
    told = [json.loads(line) for line in events.read_text().splitlines()]
    ends = [event for event in told if event["event"] == "finished"]
    assert len(ends) == 36
    assert {event["worker"] for event in told} <= set(workers)


def test_spans_go_where_bentoml_sends_its_own(tmp_path: Path) -> None:
    config = tmp_path / "tracing.yaml"
    config.write_text(TRACING)
    environment = {**os.environ, "BENTOML_CONFIG": str(config)}
    command = [sys.executable, "-c", TRACED]
    run = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True, timeout=300)
    status, told = json.loads(run.stdout.splitlines()[-1])
    http = "POST /v1/chat/completions"
    assert status == 200
    assert [[name, parent] for name, parent, _ in told if "http " not in name] == [
        ["queue", "text_completion demo"],
        ["prefill", "text_completion demo"],
        ["decode", "text_completion demo"],
        ["text_completion demo", http],
        [http, None],
    ]
    assert {trace for _, _, trace in told} == {hex(int("a" * 32, 16))}

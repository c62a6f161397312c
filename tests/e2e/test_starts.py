"""What keeps a server from starting ends it, with a sentence and an exit code."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.server import ROOT, serving

BENTOML = str(Path(sys.executable).parent / "bentoml")
pytestmark = pytest.mark.slow


def served(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`bentoml serve` of what cannot be served; that it comes back is the point."""
    command = [BENTOML, "serve", "service:LanguageModel", "--host", "127.0.0.1", "--port", "0", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_golden_prompts_that_fail(tiny_decoder: Path) -> None:
    path = tiny_decoder / "verification.json"
    record = json.loads(path.read_text())
    record["golden"][0]["steps"][0]["top"][0][1] += 1.0
    path.write_text(json.dumps(record))
    run = served("--arg", f"model={tiny_decoder}")
    assert run.returncode == 1
    assert re.search(r"Error: golden prompt 0, token 0 .*Run `bento-kv verify` here\.", run.stderr)
    assert (run.stdout + run.stderr).count("Application startup failed") <= 2  # one start, by two loggers


def test_an_event_log_that_cannot_be_written() -> None:
    run = served("--arg", "event_log=/no/such/folder/log")
    assert run.returncode == 1
    assert "/no/such/folder/log" in run.stderr.splitlines()[-1]


def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        run = served("--port", str(taken.getsockname()[1]))
    assert run.returncode != 0
    assert "in use" in run.stdout + run.stderr


def test_workers_end_with_a_server_that_is_killed(tmp_path: Path) -> None:
    with serving("service:LanguageModel", log=tmp_path / "log") as server:
        workers = server.workers()
        assert workers
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(60)
        deadline = time.monotonic() + 60
        while any(Path(f"/proc/{worker}").exists() for worker in workers):
            assert time.monotonic() < deadline, os.listdir("/proc")
            time.sleep(0.2)

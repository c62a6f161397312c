"""`bento-kv top` on metrics of a real engine, over HTTP."""

from __future__ import annotations

import io
import json
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import prometheus_client
import pytest
from click.testing import CliRunner
from rich.console import Console

from bento_kv.cli import main
from bento_kv.engine.config import EngineConfig
from bento_kv.engine.engine import Engine
from bento_kv.errors import MetricsError
from bento_kv.server.metrics import EngineMetrics
from bento_kv.top.frame import frame, quantile
from bento_kv.top.scrape import Scrape, base_url, scrape
from bento_kv.top.view import render, sparkline
from tests.engine.fakes import FakeDecoder, always, client, letters, run_to_end

VERIFICATION = {"passed": True, "manifest_sha256": "0123456789abcdef" * 4}


@dataclass
class Probed:
    """A server with the three paths that are looked at."""

    registry: prometheus_client.CollectorRegistry = field(default_factory=prometheus_client.CollectorRegistry)
    statuses: dict[str, int] = field(default_factory=lambda: {"/livez": 200, "/readyz": 200, "/metrics": 200})
    text: bytes | None = None
    url: str = ""


@pytest.fixture
def probed() -> Iterator[Probed]:
    probed = Probed()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(probed.statuses.get(self.path, 404))
            self.end_headers()
            if self.path == "/metrics":
                self.wfile.write(
                    prometheus_client.generate_latest(probed.registry) if probed.text is None else probed.text
                )

        def log_message(self, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    probed.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield probed
    server.shutdown()
    server.server_close()


@pytest.fixture
def engine(probed: Probed) -> Engine:
    """Four slots, two of them taken, one request waiting for nothing but its turn."""
    metrics = EngineMetrics(VERIFICATION, registry=probed.registry)
    return Engine(FakeDecoder(logits=always("abc")), letters, EngineConfig(slots=4, prefix_cache=False), metrics)


def shown(view: object, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(view)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_frame_of_an_engine_at_work(probed: Probed, engine: Engine) -> None:
    before = scrape(probed.url)
    for number in range(2):
        engine.submit(client("hello\n", str(number), temperature=0).request)
    engine.submit(client("hello\n", "short", temperature=0, max_tokens=1).request)
    for _ in range(5):
        engine.step()
    now = Scrape(before.at + 2, "ready", scrape(probed.url).samples)
    seen = frame(probed.url, before, now)
    assert (seen.state, seen.proven, seen.manifest) == ("ready", True, VERIFICATION["manifest_sha256"])
    assert (seen.slots, seen.running, seen.waiting) == (4, 2, 0)
    assert (seen.cache_used, seen.cache_total) == (2 * 10, 4 * 64)
    assert seen.prompt_rate == 3 * 6 / 2
    assert seen.generation_rate == (2 * 5 + 1) / 2
    assert seen.request_rate == 0.5
    assert seen.ended == {"stop": 0, "length": 1, "abort": 0, "error": 0}
    assert seen.timeouts == {"queue": 0, "total": 0}
    assert seen.prefix_hit_ratio is None
    assert seen.first_token.p50 is not None
    assert seen.whole.p95 is not None

    text = shown(render(seen))
    assert max(map(len, text.splitlines())) <= 80
    for part in ("2 of 4", "0 waiting", "7.8%", "ready", "proof 0123456789ab passed", "length 1", "queue 0  total 0"):
        assert part in text


def test_a_restart_counts_from_zero() -> None:
    before = Scrape(0.0, "ready", {("generation_tokens_total", ()): 1000.0})
    now = Scrape(1.0, "ready", {("generation_tokens_total", ()): 30.0})
    assert frame("http://x", before, now).generation_rate == 30


def test_large_numbers_fit_in_80_columns(probed: Probed, engine: Engine) -> None:
    before = scrape(probed.url)
    many = {key: 9_876_543_210.0 for key in before.samples if key[0] != "verification_info"}
    many |= {key: value for key, value in before.samples.items() if key[0] == "verification_info"}
    seen = frame("http://a-host-with-a-name.internal:3000", before, Scrape(before.at + 1, "not ready", many))
    assert max(map(len, shown(render(seen)).splitlines())) <= 80


def test_quantiles_are_prometheus() -> None:
    buckets = {0.1: 10.0, 0.2: 30.0, 0.4: 40.0, math.inf: 40.0}
    assert quantile(buckets, 0.5) == pytest.approx(0.15)
    assert quantile(buckets, 0.95) == pytest.approx(0.36)
    assert quantile({0.1: 0.0, math.inf: 5.0}, 0.5) == 0.1
    assert quantile({0.1: 0.0, math.inf: 0.0}, 0.5) is None
    assert quantile({}, 0.5) is None


def test_sparklines() -> None:
    assert sparkline([0, 1, 2, 4]) == "▁▃▅█"
    assert sparkline([0, 0]) == "▁▁"
    assert sparkline([]) == ""


@pytest.mark.parametrize(
    ("livez", "readyz", "state"), [(200, 200, "ready"), (200, 503, "not ready"), (503, 503, "not alive")]
)
def test_the_state_is_what_the_probes_say(probed: Probed, engine: Engine, livez: int, readyz: int, state: str) -> None:
    probed.statuses |= {"/livez": livez, "/readyz": readyz}
    assert scrape(probed.url).state == state


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("localhost:3000", "http://localhost:3000"),
        ("http://host:1/", "http://host:1"),
        ("https://host/metrics", "https://host"),
        ("host/metrics/", "http://host"),
    ],
)
def test_addresses(given: str, meant: str) -> None:
    assert base_url(given) == meant


def test_one_frame_and_one_document(probed: Probed, engine: Engine) -> None:
    engine.submit(client("hello\n", max_tokens=2).request)
    run_to_end(engine)
    runner = CliRunner()
    once = runner.invoke(main, ["top", probed.url, "--once", "--interval", "0.1"], env={"COLUMNS": "80"})
    assert once.exit_code == 0, once.output
    assert "0 of 4" in once.stdout
    document = runner.invoke(main, ["top", probed.url, "--json", "--interval", "0.1"])
    assert document.exit_code == 0
    assert json.loads(document.stdout)["ended"]["length"] == 1


@pytest.mark.parametrize(
    ("text", "message"), [(b"up 1\n", "has no metric of bento_kv"), (b"<html>", "not in Prometheus' text format")]
)
def test_another_service_is_named(probed: Probed, text: bytes, message: str) -> None:
    probed.text = text
    with pytest.raises(MetricsError, match=message):
        scrape(probed.url)


def test_a_server_that_is_not_there_is_named() -> None:
    result = CliRunner().invoke(main, ["top", "http://127.0.0.1:1", "--once"])
    assert result.exit_code == 2
    assert "http://127.0.0.1:1/metrics cannot be read" in result.stderr
    assert "Traceback" not in result.stderr

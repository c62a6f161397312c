"""Prometheus metrics of a real engine."""

from __future__ import annotations

import json
import subprocess
import sys

import httpx
import prometheus_client
import pytest

from bento_kv.engine.observer import EngineStats
from bento_kv.server.metrics import EngineMetrics
from tests.server.world import MODEL, VERIFICATION, World, serving

NAMES = {
    "bento_kv_num_requests_running": "gauge",
    "bento_kv_num_requests_waiting": "gauge",
    "bento_kv_num_slots": "gauge",
    "bento_kv_spec_decode_num_draft_tokens": "counter",
    "bento_kv_spec_decode_num_accepted_tokens": "counter",
    "bento_kv_kv_cache_usage_ratio": "gauge",
    "bento_kv_kv_cache_used_tokens": "gauge",
    "bento_kv_kv_cache_total_tokens": "gauge",
    "bento_kv_prompt_tokens": "counter",
    "bento_kv_generation_tokens": "counter",
    "bento_kv_prefix_cache_query_tokens": "counter",
    "bento_kv_prefix_cache_hit_tokens": "counter",
    "bento_kv_request_success": "counter",
    "bento_kv_request_timeouts": "counter",
    "bento_kv_time_to_first_token_seconds": "histogram",
    "bento_kv_inter_token_latency_seconds": "histogram",
    "bento_kv_e2e_request_latency_seconds": "histogram",
    "bento_kv_request_queue_time_seconds": "histogram",
    "bento_kv_verification_info": "gauge",
}


@pytest.fixture
def registry() -> prometheus_client.CollectorRegistry:
    return prometheus_client.CollectorRegistry()


def test_the_names_are_the_documented_ones(registry: prometheus_client.CollectorRegistry) -> None:
    EngineMetrics(VERIFICATION, registry=registry)
    assert {family.name: family.type for family in registry.collect()} == NAMES


@pytest.mark.parametrize(("proof", "passed"), [(VERIFICATION, "true"), ({}, "false"), ({"passed": "yes"}, "false")])
def test_the_proof_is_shown(
    registry: prometheus_client.CollectorRegistry, proof: dict[str, object], passed: str
) -> None:
    EngineMetrics(proof, registry=registry)
    labels = {"manifest": proof.get("manifest_sha256", ""), "passed": passed}
    assert registry.get_sample_value("bento_kv_verification_info", labels) == 1


def test_the_numbers_of_a_few_requests(registry: prometheus_client.CollectorRegistry) -> None:
    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"bento_kv_{name}", labels)

    with serving(observer=EngineMetrics(VERIFICATION, registry=registry)) as world, world.client() as client:
        client.completions.create(model=MODEL, prompt="x" * 192 + "say:abc|", n=2)
        client.completions.create(model=MODEL, prompt="go on", max_tokens=5)
        with client.completions.create(model=MODEL, prompt="go on", stream=True) as stream:
            next(iter(stream))
            # A token is told before its step is counted.
            world.wait_until(lambda stats: value("num_requests_running") == 1)
            world.wait_until(lambda stats: 0 < (value("kv_cache_usage_ratio") or 0) < 1)
        world.wait_until(lambda stats: value("num_requests_running") == 0)
    assert [value("request_success_total", finished_reason=it) for it in ("stop", "length", "abort", "error")] == [
        2,
        1,
        1,
        0,
    ]
    assert value("prompt_tokens_total") == 2 * 200 + 5 + 5
    assert (value("generation_tokens_total") or 0) >= 2 * 4 + 5 + 1
    for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time"):
        assert value(f"{name}_seconds_count") == 4
    assert (value("inter_token_latency_seconds_count") or 0) >= 2 * 3 + 4
    assert value("prefix_cache_query_tokens_total") == 2 * 200 + 5 + 5
    assert value("prefix_cache_hit_tokens_total") == 192  # the second choice had 198, the second "go on" 3
    assert value("num_requests_running") == value("num_requests_waiting") == value("kv_cache_usage_ratio") == 0


def test_the_gauges_follow_the_books(registry: prometheus_client.CollectorRegistry) -> None:
    metrics = EngineMetrics(VERIFICATION, registry=registry)
    for _ in range(3):
        metrics.queued()
    assert registry.get_sample_value("bento_kv_num_requests_waiting") == 3
    metrics.step(EngineStats(running=2, waiting=1, slots=2, kv_tokens_used=30, kv_tokens_total=40), 8, 2)
    assert registry.get_sample_value("bento_kv_num_requests_running") == 2
    assert registry.get_sample_value("bento_kv_num_requests_waiting") == 1
    assert registry.get_sample_value("bento_kv_kv_cache_usage_ratio") == 0.75


def test_the_server_alone_does_not_import_prometheus() -> None:
    code = "import sys, bento_kv.server.app, bento_kv.server.metrics; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_several_processes_add_up(tmp_path_factory: pytest.TempPathFactory) -> None:
    """As under BentoML, which sets the folder before metrics are made."""
    folder = tmp_path_factory.mktemp("prometheus")
    code = f"""
import json, os
os.environ["PROMETHEUS_MULTIPROC_DIR"] = {str(folder)!r}
from bento_kv.engine.observer import EngineStats
from bento_kv.server.metrics import EngineMetrics
metrics = EngineMetrics({VERIFICATION!r})
stats = EngineStats(running=2, waiting=1, slots=4, kv_tokens_used=1, kv_tokens_total=4)
metrics.opened(stats)
metrics.step(stats, 10, 2)
from prometheus_client import CollectorRegistry, multiprocess
registry = CollectorRegistry()
multiprocess.MultiProcessCollector(registry)
samples = {{sample.name: sample.value for family in registry.collect() for sample in family.samples}}
print(json.dumps(samples), flush=True)
input()
"""

    def worker() -> tuple[subprocess.Popen[str], dict[str, float]]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = subprocess.Popen([sys.executable, "-c", code], text=True, **pipes)  # type: ignore[call-overload]
        return process, json.loads(process.stdout.readline())

    (one, first), (other, second) = worker(), worker()
    for process in (one, other):
        process.communicate("\n")
    # Both are gone, and with them what they were doing; what they had done is not.
    another, third = worker()
    another.communicate("\n")
    assert (third["bento_kv_prompt_tokens_total"], third["bento_kv_num_requests_running"]) == (30, 2)
    assert third["bento_kv_num_slots"] == 4
    assert second["bento_kv_num_slots"] == 8
    assert (first["bento_kv_prompt_tokens_total"], second["bento_kv_prompt_tokens_total"]) == (10, 20)
    assert second["bento_kv_num_requests_running"] == 4
    assert second["bento_kv_kv_cache_usage_ratio"] == 0.25
    assert second["bento_kv_verification_info"] == 1


def test_the_app_has_no_metrics_route_of_its_own(world: World) -> None:
    assert httpx.get(f"{world.url}/metrics").status_code == 404

"""Prometheus metrics of an engine; names and meaning as vLLM's of the same stem.

`prometheus_client` decides between one process and several when it is imported, by an environment variable that
BentoML sets at start-up: so it is imported when metrics are made, not before.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bento_kv.engine.deadlines import Timeout
from bento_kv.engine.observer import EngineStats
from bento_kv.engine.request import FinishReason

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

# Seconds. From a small model's step to the longest wait that a client would bear.
_TOKEN_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0)
_FIRST_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
_REQUEST_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 240.0, 480.0)


class EngineMetrics:
    """An `Observer` that keeps Prometheus metrics.

    Args:
        verification: the proof that is being served; `manifest_sha256` and `passed` are shown.
        registry: where the metrics are kept; the process's own, which BentoML's `/metrics` shows, if None. A registry
            takes one set of them.
    """

    def __init__(self, verification: Mapping[str, Any], *, registry: CollectorRegistry | None = None) -> None:
        import prometheus_client as prometheus

        home = prometheus.REGISTRY if registry is None else registry
        if registry is None:
            _forget_dead_processes()

        def gauge(name: str, help: str, mode: Any, labels: tuple[str, ...] = ()) -> prometheus.Gauge:
            return prometheus.Gauge(f"bento_kv_{name}", help, labels, registry=home, multiprocess_mode=mode)

        def counter(name: str, help: str, labels: tuple[str, ...] = ()) -> prometheus.Counter:
            return prometheus.Counter(f"bento_kv_{name}", help, labels, registry=home)

        def seconds(name: str, help: str, buckets: tuple[float, ...]) -> prometheus.Histogram:
            return prometheus.Histogram(f"bento_kv_{name}_seconds", help, registry=home, buckets=buckets)

        self._running = gauge("num_requests_running", "Requests that have a slot.", "livesum")
        self._waiting = gauge("num_requests_waiting", "Requests that wait for a slot.", "livesum")
        self._slots = gauge("num_slots", "Slots in all.", "livesum")
        self._kv_used = gauge("kv_cache_used_tokens", "Used positions of the KV cache.", "livesum")
        self._kv_total = gauge("kv_cache_total_tokens", "Positions of the KV cache in all.", "livesum")
        self._kv_usage = gauge("kv_cache_usage_ratio", "Used part of the KV cache's positions, 0 to 1.", "livemax")
        self._prompt_tokens = counter(
            "prompt_tokens", "Prompt tokens processed, computed or found in the prefix cache."
        )
        self._generation_tokens = counter("generation_tokens", "Tokens generated.")
        self._cache_queries = counter("prefix_cache_query_tokens", "Prompt tokens looked up in the prefix cache.")
        self._cache_hits = counter("prefix_cache_hit_tokens", "Prompt tokens that the prefix cache had.")
        self._drafts = counter("spec_decode_num_draft_tokens", "Guesses of next tokens that were checked.")
        self._accepted = counter("spec_decode_num_accepted_tokens", "Of these, those that became part of an answer.")
        self._finished = counter("request_success", "Requests that ended, by reason.", ("finished_reason",))
        self._timeouts = counter("request_timeouts", "Requests that a deadline ended, by which.", ("deadline",))
        self._first_token = seconds("time_to_first_token", "From submission to the first token.", _FIRST_TOKEN_BUCKETS)
        self._next_token = seconds("inter_token_latency", "From a token to the next one.", _TOKEN_BUCKETS)
        self._e2e = seconds("e2e_request_latency", "From submission to the end.", _REQUEST_BUCKETS)
        self._queue = seconds("request_queue_time", "From submission to the first step.", _REQUEST_BUCKETS)
        info = gauge(
            "verification_info", "The proof that is being served; always 1.", "livemax", ("manifest", "passed")
        )
        passed = str(verification.get("passed") is True).lower()
        info.labels(manifest=str(verification.get("manifest_sha256", "")), passed=passed).set(1)
        for reason in ("stop", "length", "abort", "error"):
            self._finished.labels(finished_reason=reason)  # there from the start, so that rates begin at zero
        for deadline in ("queue", "total"):
            self._timeouts.labels(deadline=deadline)
        self._alive = 0

    def queued(self) -> None:
        """A request was accepted."""
        self._alive += 1
        self._waiting.inc()

    def admitted(self, queue_seconds: float) -> None:
        """A request's first step begins."""
        self._queue.observe(queue_seconds)

    def prefix_cache(self, query_tokens: int, hit_tokens: int) -> None:
        """A prompt was looked up in the prefix cache."""
        self._cache_queries.inc(query_tokens)
        self._cache_hits.inc(hit_tokens)

    def first_token(self, seconds: float) -> None:
        """A request's first token was chosen."""
        self._first_token.observe(seconds)

    def next_token(self, seconds: float) -> None:
        """A later token was chosen."""
        self._next_token.observe(seconds)

    def finished(self, reason: FinishReason, e2e_seconds: float, prompt_tokens: int, generated_tokens: int) -> None:
        """A request ended."""
        self._finished.labels(finished_reason=reason).inc()
        self._e2e.observe(e2e_seconds)
        self._alive -= 1
        if self._alive == 0:  # no step may follow that would tell
            self._show(running=0, waiting=0)

    def timed_out(self, deadline: Timeout) -> None:
        """A request that ended did so because of a deadline."""
        self._timeouts.labels(deadline=deadline).inc()

    def speculation(self, draft_tokens: int, accepted_tokens: int) -> None:
        """A step checked guesses."""
        self._drafts.inc(draft_tokens)
        self._accepted.inc(accepted_tokens)

    def step(self, stats: EngineStats, prompt_tokens: int, generated_tokens: int) -> None:
        """A step went well."""
        self._prompt_tokens.inc(prompt_tokens)
        self._generation_tokens.inc(generated_tokens)
        self._show(stats.running, stats.waiting, stats.kv_tokens_used, stats.kv_tokens_total)

    def opened(self, stats: EngineStats) -> None:
        """The engine takes requests from now on."""
        self._slots.set(stats.slots)
        self._kv_total.set(stats.kv_tokens_total)

    def _show(self, running: int, waiting: int, kv_used: int = 0, kv_total: int = 1) -> None:
        self._running.set(running)
        self._waiting.set(waiting)
        self._kv_used.set(kv_used)
        self._kv_usage.set(kv_used / kv_total)


def _forget_dead_processes() -> None:
    """Take the gauges of workers that crashed out of the sums; those that end in order are taken out by BentoML."""
    from prometheus_client import multiprocess

    for file in Path(os.environ.get("PROMETHEUS_MULTIPROC_DIR", os.devnull)).glob("gauge_live*_*.db"):
        process = int(file.stem.rpartition("_")[2])
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            multiprocess.mark_process_dead(process)  # type: ignore[no-untyped-call]
        except PermissionError:  # it is somebody else's, so it is there
            continue

"""Prometheus metrics of an engine, as `metric_table.py` lists them.

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
from bento_kv.server.metric_table import (
    ACCEPTED,
    CACHE_HITS,
    CACHE_QUERIES,
    DRAFTS,
    E2E,
    FINISHED,
    FIRST_TOKEN,
    GENERATION_TOKENS,
    HIT_BLOCK,
    KV_TOTAL,
    KV_USAGE,
    KV_USED,
    METRICS,
    NEXT_TOKEN,
    PREFIX,
    PROMPT_TOKENS,
    QUEUE,
    RUNNING,
    SLOTS,
    TIMEOUTS,
    VERIFICATION,
    WAITING,
    Metric,
)

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


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

        def gauge(metric: Metric) -> prometheus.Gauge:
            labels = [name for name, _ in metric.labels]
            return prometheus.Gauge(
                PREFIX + metric.name, metric.help, labels, registry=home, multiprocess_mode=metric.mode
            )

        def counter(metric: Metric) -> prometheus.Counter:
            labels = [name for name, _ in metric.labels]
            made = prometheus.Counter(PREFIX + metric.name, metric.help, labels, registry=home)
            for name, values in metric.labels:  # there from the start, so that rates begin at zero
                for value in values:
                    made.labels(**{name: value})
            return made

        def histogram(metric: Metric) -> prometheus.Histogram:
            return prometheus.Histogram(PREFIX + metric.name, metric.help, registry=home, buckets=metric.buckets)

        self._gauges = {metric: gauge(metric) for metric in METRICS if metric.kind == "gauge"}
        self._counters = {metric: counter(metric) for metric in METRICS if metric.kind == "counter"}
        self._histograms = {metric: histogram(metric) for metric in METRICS if metric.kind == "histogram"}
        passed = str(verification.get("passed") is True).lower()
        proof = self._gauges[VERIFICATION]
        proof.labels(manifest=str(verification.get("manifest_sha256", "")), passed=passed).set(1)
        self._alive = 0

    def queued(self) -> None:
        """A request was accepted."""
        self._alive += 1
        self._gauges[WAITING].inc()

    def admitted(self, queue_seconds: float) -> None:
        """A request's first step begins."""
        self._histograms[QUEUE].observe(queue_seconds)

    def prefix_cache(self, query_tokens: int, hit_tokens: int) -> None:
        """A prompt was looked up in the prefix cache."""
        self._counters[CACHE_QUERIES].inc(query_tokens)
        self._counters[CACHE_HITS].inc(hit_tokens - hit_tokens % HIT_BLOCK)

    def first_token(self, seconds: float) -> None:
        """A request's first token was chosen."""
        self._histograms[FIRST_TOKEN].observe(seconds)

    def next_token(self, seconds: float) -> None:
        """A later token was chosen."""
        self._histograms[NEXT_TOKEN].observe(seconds)

    def finished(self, reason: FinishReason, e2e_seconds: float, prompt_tokens: int, generated_tokens: int) -> None:
        """A request ended."""
        self._counters[FINISHED].labels(finished_reason=reason).inc()
        self._histograms[E2E].observe(e2e_seconds)
        self._alive -= 1
        if self._alive == 0:  # no step may follow that would tell
            self._show(running=0, waiting=0)

    def timed_out(self, deadline: Timeout) -> None:
        """A request that ended did so because of a deadline."""
        self._counters[TIMEOUTS].labels(deadline=deadline).inc()

    def speculation(self, draft_tokens: int, accepted_tokens: int) -> None:
        """A step checked guesses."""
        self._counters[DRAFTS].inc(draft_tokens)
        self._counters[ACCEPTED].inc(accepted_tokens)

    def step(self, stats: EngineStats, prompt_tokens: int, generated_tokens: int) -> None:
        """A step went well."""
        self._counters[PROMPT_TOKENS].inc(prompt_tokens)
        self._counters[GENERATION_TOKENS].inc(generated_tokens)
        self._show(stats.running, stats.waiting, stats.kv_tokens_used, stats.kv_tokens_total)

    def opened(self, stats: EngineStats) -> None:
        """The engine takes requests from now on."""
        self._gauges[SLOTS].set(stats.slots)
        self._gauges[KV_TOTAL].set(stats.kv_tokens_total)

    def _show(self, running: int, waiting: int, kv_used: int = 0, kv_total: int = 1) -> None:
        self._gauges[RUNNING].set(running)
        self._gauges[WAITING].set(waiting)
        self._gauges[KV_USED].set(kv_used)
        self._gauges[KV_USAGE].set(kv_used / kv_total)


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

"""What two looks at a server say about the time between them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bento_kv.server import metric_table as table
from bento_kv.server.metric_table import Metric
from bento_kv.top.scrape import Scrape, State


@dataclass(frozen=True, kw_only=True)
class Quantiles:
    """Seconds; None where nothing was measured. An upper bound of the true ones, interpolated within buckets."""

    p50: float | None
    p95: float | None


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One view of a server. Rates are per second, over the time between the looks.

    Attributes:
        server: its address.
        state: what the probes say.
        manifest, proven: the proof that it serves.
        slots, running, waiting: requests.
        cache_used, cache_total: positions of the KV cache.
        prompt_rate, generation_rate: tokens a second.
        request_rate: requests that ended, a second.
        prefix_hit_ratio: part of the prompt tokens looked up that the prefix cache had; None if none were.
        first_token, next_token, queue, whole: quantiles of what ended between the looks; since the start where nothing did.
        ended, timeouts: counts since the start.
    """

    server: str
    state: State
    manifest: str
    proven: bool
    slots: int
    running: int
    waiting: int
    cache_used: int
    cache_total: int
    prompt_rate: float
    generation_rate: float
    request_rate: float
    prefix_hit_ratio: float | None
    first_token: Quantiles
    next_token: Quantiles
    queue: Quantiles
    whole: Quantiles
    ended: dict[str, int]
    timeouts: dict[str, int]


def frame(server: str, before: Scrape, now: Scrape) -> Frame:
    """The view that two looks give. A counter that went down, as by a restart, counts from zero."""
    seconds = max(now.at - before.at, 1e-9)

    def gained(metric: Metric, **labels: str) -> float:
        new, old = now.value(metric, **labels), before.value(metric, **labels)
        return new - old if new >= old else new

    ended = {labels[0][1]: int(value) for labels, value in now.labelled(table.FINISHED).items()}
    timeouts = {labels[0][1]: int(value) for labels, value in now.labelled(table.TIMEOUTS).items()}
    queries = gained(table.CACHE_QUERIES)
    proof = dict(next(iter(now.labelled(table.VERIFICATION)), ()))
    return Frame(
        server=server,
        state=now.state,
        manifest=proof.get("manifest", ""),
        proven=proof.get("passed") == "true",
        slots=int(now.value(table.SLOTS)),
        running=int(now.value(table.RUNNING)),
        waiting=int(now.value(table.WAITING)),
        cache_used=int(now.value(table.KV_USED)),
        cache_total=int(now.value(table.KV_TOTAL)),
        prompt_rate=gained(table.PROMPT_TOKENS) / seconds,
        generation_rate=gained(table.GENERATION_TOKENS) / seconds,
        request_rate=sum(gained(table.FINISHED, finished_reason=reason) for reason in ended) / seconds,
        prefix_hit_ratio=gained(table.CACHE_HITS) / queries if queries else None,
        first_token=_quantiles(table.FIRST_TOKEN, before, now),
        next_token=_quantiles(table.NEXT_TOKEN, before, now),
        queue=_quantiles(table.QUEUE, before, now),
        whole=_quantiles(table.E2E, before, now),
        ended=ended,
        timeouts=timeouts,
    )


def _quantiles(metric: Metric, before: Scrape, now: Scrape) -> Quantiles:
    new, old = _buckets(metric, now), _buckets(metric, before)
    recent = {bound: count - old.get(bound, 0.0) for bound, count in new.items()}
    if recent and recent[math.inf] <= 0:
        recent = new
    return Quantiles(p50=quantile(recent, 0.5), p95=quantile(recent, 0.95))


def _buckets(metric: Metric, scrape: Scrape) -> dict[float, float]:
    """Cumulative counts by upper bound, in order."""
    counts = {float(dict(labels)["le"]): value for labels, value in scrape.labelled(metric).items()}
    return dict(sorted(counts.items()))


def quantile(buckets: dict[float, float], part: float) -> float | None:
    """As Prometheus' `histogram_quantile`: linear within a bucket; the last finite bound for what lies beyond it."""
    total = buckets.get(math.inf, 0.0)
    if not total:
        return None
    low, below = 0.0, 0.0
    for bound, count in buckets.items():
        if count >= part * total:
            if bound == math.inf:
                return low
            return low + (bound - low) * (part * total - below) / (count - below)
        low, below = bound, count
    return low

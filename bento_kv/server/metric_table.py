"""Every metric, a row each: the collectors, `bento-kv top` and the documentation derive from these.

Names and meaning are vLLM's of the same stem.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PREFIX = "bento_kv_"
HIT_BLOCK = 64  # tokens; by single ones, who guesses at another's prompt would see how far a guess is right

# Seconds. From a small model's step to the longest wait that a client would bear.
_TOKEN_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0)
_FIRST_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
_REQUEST_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 240.0, 480.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """A row of the table.

    Attributes:
        name: of its samples, without `PREFIX`; a histogram's have `_bucket`, `_count` or `_sum` behind it.
        kind: as Prometheus has it.
        help: what it is, a sentence.
        labels: and the values that each may have, where they are few.
        mode: how a gauge's values of several workers become one, as `prometheus_client` names it.
        buckets: upper bounds of a histogram, in seconds.
    """

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    labels: tuple[tuple[str, tuple[str, ...]], ...] = ()
    mode: Literal["livesum", "livemax"] = "livesum"
    buckets: tuple[float, ...] = ()


RUNNING = Metric("num_requests_running", "gauge", "Requests that have a slot.")
WAITING = Metric("num_requests_waiting", "gauge", "Requests that wait for a slot.")
SLOTS = Metric("num_slots", "gauge", "Slots in all.")
KV_USED = Metric("kv_cache_used_tokens", "gauge", "Used positions of the KV cache.")
KV_TOTAL = Metric("kv_cache_total_tokens", "gauge", "Positions of the KV cache in all.")
KV_USAGE = Metric("kv_cache_usage_ratio", "gauge", "Used part of the KV cache's positions, 0 to 1.", mode="livemax")
PROMPT_TOKENS = Metric(
    "prompt_tokens_total", "counter", "Prompt tokens processed, computed or found in the prefix cache."
)
GENERATION_TOKENS = Metric("generation_tokens_total", "counter", "Tokens generated.")
CACHE_QUERIES = Metric("prefix_cache_query_tokens_total", "counter", "Prompt tokens looked up in the prefix cache.")
CACHE_HITS = Metric(
    "prefix_cache_hit_tokens_total",
    "counter",
    f"Prompt tokens that the prefix cache had, of each prompt in whole blocks of {HIT_BLOCK}.",
)
DRAFTS = Metric("spec_decode_num_draft_tokens_total", "counter", "Guesses of next tokens that were checked.")
ACCEPTED = Metric("spec_decode_num_accepted_tokens_total", "counter", "Of these, those that became part of an answer.")
FINISHED = Metric(
    "request_success_total",
    "counter",
    "Requests that ended, by reason.",
    (("finished_reason", ("stop", "length", "abort", "error")),),
)
TIMEOUTS = Metric(
    "request_timeouts_total",
    "counter",
    "Requests that a deadline ended, by which.",
    (("deadline", ("queue", "total")),),
)
FIRST_TOKEN = Metric(
    "time_to_first_token_seconds",
    "histogram",
    "From submission to the first token.",
    buckets=_FIRST_TOKEN_BUCKETS,
)
NEXT_TOKEN = Metric("inter_token_latency_seconds", "histogram", "From a token to the next one.", buckets=_TOKEN_BUCKETS)
E2E = Metric("e2e_request_latency_seconds", "histogram", "From submission to the end.", buckets=_REQUEST_BUCKETS)
QUEUE = Metric(
    "request_queue_time_seconds", "histogram", "From submission to the first step.", buckets=_REQUEST_BUCKETS
)
VERIFICATION = Metric(
    "verification_info",
    "gauge",
    "The proof that is being served; always 1.",
    (("manifest", ()), ("passed", ("true", "false"))),
    mode="livemax",
)

METRICS = (
    RUNNING,
    WAITING,
    SLOTS,
    KV_USED,
    KV_TOTAL,
    KV_USAGE,
    PROMPT_TOKENS,
    GENERATION_TOKENS,
    CACHE_QUERIES,
    CACHE_HITS,
    DRAFTS,
    ACCEPTED,
    FINISHED,
    TIMEOUTS,
    FIRST_TOKEN,
    NEXT_TOKEN,
    E2E,
    QUEUE,
    VERIFICATION,
)

"""Who watches the engine: numbers for metrics, told from the engine thread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from bento_kv.engine.deadlines import Timeout
from bento_kv.engine.request import FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """A snapshot of the engine's books.

    Attributes:
        running: requests that have a slot.
        waiting: requests that were accepted and have none yet.
        slots: slots in all.
        kv_tokens_used: positions of the KV cache that hold a running request's keys and values.
        kv_tokens_total: positions of the KV cache that there is memory for.
        kv_tokens_reserved: of these, what running requests may come to use.
        kv_tokens_cached: of these, cached prefixes of requests that have ended.
    """

    running: int
    waiting: int
    slots: int
    kv_tokens_used: int
    kv_tokens_total: int
    kv_tokens_reserved: int = 0
    kv_tokens_cached: int = 0


class Observer(Protocol):
    """Called on the engine thread; durations are seconds. What it raises is logged and otherwise ignored."""

    def opened(self, stats: EngineStats) -> None:
        """The engine is ready; told once, before anything else."""
        ...

    def queued(self) -> None:
        """A request was accepted."""
        ...

    def admitted(self, queue_seconds: float) -> None:
        """A request's first step begins, this long after it was submitted."""
        ...

    def prefix_cache(self, query_tokens: int, hit_tokens: int) -> None:
        """A prompt of so many tokens was looked up in the prefix cache, which had so many of them; once a request."""
        ...

    def first_token(self, seconds: float) -> None:
        """A request's first token was chosen, this long after it was submitted."""
        ...

    def next_token(self, seconds: float) -> None:
        """A later token was chosen, this long after the one before."""
        ...

    def finished(self, reason: FinishReason, e2e_seconds: float, prompt_tokens: int, generated_tokens: int) -> None:
        """A request ended, this long after it was submitted; told once a request."""
        ...

    def timed_out(self, deadline: Timeout) -> None:
        """A request that ended did so because of a deadline."""
        ...

    def speculation(self, draft_tokens: int, accepted_tokens: int) -> None:
        """A step checked so many guesses, and so many of them became part of answers; told only if there were any."""
        ...

    def step(self, stats: EngineStats, prompt_tokens: int, generated_tokens: int) -> None:
        """A step went well: it computed and chose so many tokens; `stats` are the books after it."""
        ...


class NullObserver:
    """Watches nothing."""

    def opened(self, stats: EngineStats) -> None:
        return

    def queued(self) -> None:
        return

    def admitted(self, queue_seconds: float) -> None:
        return

    def prefix_cache(self, query_tokens: int, hit_tokens: int) -> None:
        return

    def first_token(self, seconds: float) -> None:
        return

    def next_token(self, seconds: float) -> None:
        return

    def finished(self, reason: FinishReason, e2e_seconds: float, prompt_tokens: int, generated_tokens: int) -> None:
        return

    def timed_out(self, deadline: Timeout) -> None:
        return

    def speculation(self, draft_tokens: int, accepted_tokens: int) -> None:
        return

    def step(self, stats: EngineStats, prompt_tokens: int, generated_tokens: int) -> None:
        return

"""The life of single requests, event by event, for those who want more than numbers: a log, a trace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from bento_kv.engine.request import Request

EventKind = Literal["queued", "admitted", "chunk", "first_token", "finished"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a request.

    - `queued`: it was accepted.
    - `admitted`: its first step begins; `slot`.
    - `chunk`: a part of its prompt was computed; `tokens` now, `computed` in all.
    - `first_token`: it was chosen.
    - `finished`: it ended; `reason`, `generated` tokens, `timeout` if a deadline ended it, `error` if something failed.

    Attributes:
        kind: what happened.
        request: to whom.
        at: when, `time.perf_counter` seconds.
        details: the rest, in JSON's types.
    """

    kind: EventKind
    request: Request
    at: float
    details: Mapping[str, Any] = field(default_factory=dict)


class Recorder(Protocol):
    """Keeps events. What it raises is logged and otherwise ignored."""

    def record(self, event: Event) -> None:
        """Called on the engine thread; it must not block."""
        ...

    def close(self) -> None:
        """The engine has stopped: no event will follow."""
        ...

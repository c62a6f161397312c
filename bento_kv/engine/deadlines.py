"""How long a request may wait, and how long it may take."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from bento_kv.contract.settings import Bounds, out_of_range, setting
from bento_kv.errors import RequestError

# Which deadline ended a request: that of its place in the queue, or that of the whole.
Timeout = Literal["queue", "total"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """Seconds from submission. They are looked at between steps, so a request may go beyond by as long as a step takes."""

    max_queue_time: float | None = setting(
        None,
        "seconds from submission to the first step; a request that has waited longer ends without an answer",
        bounds=Bounds(gt=0),
        unit="seconds",
    )
    # The name and meaning of transformers' `GenerationConfig.max_time`; llama-server's `t_max_predict_ms` cuts likewise.
    max_time: float | None = setting(
        None,
        "seconds from submission to the end, the wait included; the answer is cut there, with finish reason `length`",
        bounds=Bounds(gt=0),
        unit="seconds",
    )

    def within(self, limits: Deadlines) -> Deadlines:
        """These deadlines, with those of `limits` where none is set.

        Raises:
            RequestError: one is not a number of seconds above 0, or beyond what `limits` allow.
        """
        for name, sentence in out_of_range(self):
            raise RequestError(sentence, param=name)
        return Deadlines(
            max_queue_time=_within("max_queue_time", self.max_queue_time, limits.max_queue_time),
            max_time=_within("max_time", self.max_time, limits.max_time),
        )

    def ends(self, arrived: float) -> Ends:
        """When they are, for a request that arrived then."""
        total = math.inf if self.max_time is None else arrived + self.max_time
        queue = math.inf if self.max_queue_time is None else arrived + self.max_queue_time
        return Ends(queue=min(queue, total), total=total)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """The moments at which a request runs out of time, waiting and at all; `time.perf_counter` seconds."""

    queue: float
    total: float


class Timed(Protocol):
    """What has a deadline. It may move to later, as when a request leaves the queue, and not to earlier."""

    @property
    def deadline(self) -> float: ...


T = TypeVar("T", bound=Timed)


class DeadlineWatch:
    """Finds those that are out of time, and looks at all only when one may be."""

    def __init__(self) -> None:
        self._soonest = math.inf

    def add(self, timed: Timed) -> None:
        self._soonest = min(self._soonest, timed.deadline)

    def due(self, all_timed: Iterable[T], now: float) -> list[T]:
        """Those whose deadline has passed, out of all that were added and still count."""
        if now < self._soonest:
            return []
        due: list[T] = []
        self._soonest = math.inf
        for timed in all_timed:
            if timed.deadline <= now:
                due.append(timed)
            else:
                self._soonest = min(self._soonest, timed.deadline)
        return due


def _within(name: str, asked: float | None, limit: float | None) -> float | None:
    if asked is None:
        return limit
    if limit is not None and asked > limit:
        raise RequestError(f"{name} is {asked:g}; at most {limit:g} seconds may be asked for", param=name)
    return asked

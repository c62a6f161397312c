"""Follows a trace's lengths and tokens: what stands in the cache at each step, and how the step stands to it.

A step is right if its past is what was computed, or a part of it that the loop took back: drafts that were rejected, or
tokens that it feeds again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from bento_kv.doctor.loop.trace import Trace, TraceStep


class Kind(Enum):
    """How a step's past and tokens stand to what was computed before."""

    APPEND = "behind all that was computed"
    ROLLBACK = "behind what is left after rejected drafts were taken back"
    REDO = "tokens of the cache's end again"
    RECOMPUTE = "everything again, with an empty past"
    DROPPED = "new tokens with an empty past"
    WHOLE = "tokens that the cache holds already, and new ones"
    STALE = "a past that is too short"
    BEYOND = "a past that is longer than what was computed"


RIGHT = frozenset({Kind.APPEND, Kind.ROLLBACK, Kind.REDO})


@dataclass(frozen=True, slots=True)
class Walked:
    """A step beside what it should have been.

    Attributes:
        kind: step 0 is an APPEND where its past is empty.
        expected_past: positions that the past should have.
        expected_tokens: tokens that should be fed.
        sequence: `[rows, length]`, the tokens before this step.
    """

    step: TraceStep
    kind: Kind
    expected_past: int
    expected_tokens: int
    sequence: NDArray[np.int64]

    @property
    def as_expected(self) -> bool:
        return self.step.past_length == self.expected_past and self.step.width == self.expected_tokens


def walk(trace: Trace) -> list[Walked]:
    """Follow lengths and tokens through the steps."""
    walked: list[Walked] = []
    sequence = np.zeros((trace.rows, 0), dtype=np.int64)  # of a right loop with these tokens
    computed = 0  # what the traced cache can hold by its own lengths
    for number, step in enumerate(trace.steps):
        following = trace.steps[number + 1] if number + 1 < len(trace.steps) else None
        kind = _kind(step, following, walked, sequence, computed)
        past, new = _expected(kind, step, sequence)
        walked.append(Walked(step, kind, past, new, sequence))
        sequence = np.concatenate((sequence[:, :past], step.ids[:, step.width - new :]), axis=1)
        computed = step.past_length + step.width
    return walked


def _expected(kind: Kind, step: TraceStep, sequence: NDArray[np.int64]) -> tuple[int, int]:
    if kind in RIGHT:
        return step.past_length, step.width
    length = sequence.shape[1]
    if kind in (Kind.WHOLE, Kind.RECOMPUTE):
        again = _repeated(step.ids, sequence)
        return length, max(step.width - again, 1)
    return length, step.width


def _kind(
    step: TraceStep,
    following: TraceStep | None,
    walked: list[Walked],
    sequence: NDArray[np.int64],
    computed: int,
) -> Kind:
    past, ids = step.past_length, step.ids
    if not walked:
        return Kind.APPEND if past == 0 else Kind.BEYOND
    if past == 0:
        whole = np.array_equal(ids[:, : sequence.shape[1]], sequence)
        return Kind.RECOMPUTE if whole else Kind.DROPPED
    if _is_whole(step, following, sequence, walked[-1].step):
        return Kind.WHOLE
    if past == computed:
        return Kind.APPEND
    if past > computed:
        return Kind.BEYOND
    last = walked[-1].step
    dropped = sequence[:, past:]
    again = min(dropped.shape[1], step.width)
    same_step = (past, step.width) == (last.past_length, last.width)
    if again and not same_step and np.array_equal(ids[:, :again], dropped[:, :again]):
        return Kind.REDO
    # Of a check of drafts its first token is no draft, and is never taken back.
    if len(walked) > 1 and last.width > 1 and past > last.past_length and walked[-1].kind in RIGHT:
        return Kind.ROLLBACK
    return Kind.STALE


def _repeated(ids: NDArray[np.int64], sequence: NDArray[np.int64]) -> int:
    """Length of the sequence's end that the ids begin with, at most all of it: the longest one."""
    for length in range(min(ids.shape[1], sequence.shape[1]), 0, -1):
        if np.array_equal(ids[:, :length], sequence[:, sequence.shape[1] - length :]):
            return length
    return 0


def _is_whole(step: TraceStep, following: TraceStep | None, sequence: NDArray[np.int64], last: TraceStep) -> bool:
    """Whether a token is fed behind tokens that the cache holds already.

    A chunk or a draft may repeat the sequence's end by chance, so short repeats have to be seen twice, or to end in the
    token that the loop says it chose.
    """
    again = step.width - 1
    length = sequence.shape[1]
    if again < 1 or again > length or step.past_length < last.past_length + last.width:
        return False
    if not np.array_equal(step.ids[:, :-1], sequence[:, length - again :]):
        return False
    if again == length and length > 1:
        return True
    if last.next_token is not None:
        return tuple(step.ids[:, 0].tolist()) != last.next_token == tuple(step.ids[:, -1].tolist())
    if following is None or following.width < 2:
        return False
    held = np.concatenate((sequence, step.ids[:, -1:]), axis=1)
    again = following.width - 1
    return again <= held.shape[1] and np.array_equal(following.ids[:, :-1], held[:, held.shape[1] - again :])

"""Fault injection: a decoder that raises, hangs or miscomputes at chosen steps, for chosen requests."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bento_kv.contract.decoder import Decoder, SavedCache
from bento_kv.contract.plan import StepPlan, StepRow


@dataclass(frozen=True)
class Seen:
    """What a fault can look at before a step.

    Attributes:
        number: of the step, from 0.
        rows: of the plan.
        prompts: of the plan's rows, in their order: the tokens that stand in the slot, those of the step included.
    """

    number: int
    rows: Sequence[StepRow]
    prompts: Sequence[tuple[int, ...]]


Fault = Callable[[Seen, NDArray[np.float32] | None], NDArray[np.float32] | None]
"""Called before a step without logits and after it with them: may raise, block, or return other logits."""


class FaultyDecoder:
    """A decoder with one fault, which can come and go.

    Args:
        decoder: who computes.
        fault: what goes wrong.
    """

    def __init__(self, decoder: Decoder, fault: Fault | None = None) -> None:
        self.fault = fault
        self._decoder = decoder
        self._steps = 0
        self._prompts: dict[int, tuple[int, ...]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)

    def step(self, plan: StepPlan) -> NDArray[np.float32]:
        for row in plan.rows:
            self._prompts[row.slot] = (*self._prompts.get(row.slot, ())[: row.start], *row.tokens)
        seen = Seen(self._steps, plan.rows, [self._prompts[row.slot] for row in plan.rows])
        self._steps += 1
        fault = self.fault
        if fault is None:
            return self._decoder.step(plan)
        fault(seen, None)
        logits = self._decoder.step(plan)
        changed = fault(seen, logits)
        return logits if changed is None else changed

    def copy(self, source: int, target: int, length: int) -> None:
        self._decoder.copy(source, target, length)
        self._prompts[target] = self._prompts[source][:length]

    def save(self, slot: int, length: int) -> SavedCache:
        return self._decoder.save(slot, length), self._prompts[slot][:length]

    def restore(self, slot: int, saved: SavedCache, length: int) -> None:
        kept, prompt = saved
        self._decoder.restore(slot, kept, length)
        self._prompts[slot] = prompt[:length]


def raises(error: BaseException, when: Callable[[Seen], bool], *, after: bool = False) -> Fault:
    """Raise where `when` says so: before the step, or when it has written its keys and values."""

    def fault(seen: Seen, logits: NDArray[np.float32] | None) -> None:
        if (logits is not None) == after and when(seen):
            raise error

    return fault


def nan_for(marker: int) -> Fault:
    """NaN in the logits of requests whose prompt has a token."""

    def fault(seen: Seen, logits: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
        if logits is None:
            return None
        logits = logits.copy()
        ends = np.cumsum([row.logits for row in seen.rows])
        for row, end, prompt in zip(seen.rows, ends, seen.prompts, strict=True):
            if marker in prompt:
                logits[end - row.logits : end, 0] = np.nan
        return logits

    return fault


class Hang:
    """Blocks every step, from one of a number or from `arm` on, until it is released."""

    def __init__(self, step: float = math.inf) -> None:
        self.began = threading.Event()
        self._step = step
        self._released = threading.Event()

    def __call__(self, seen: Seen, logits: NDArray[np.float32] | None) -> None:
        if logits is None and seen.number >= self._step:
            self.began.set()
            assert self._released.wait(120), "nobody released the step"

    def arm(self) -> None:
        self._step = 0

    def release(self) -> None:
        self._released.set()


def marked(marker: int) -> Callable[[Seen], bool]:
    """A step with a request whose prompt has a token."""
    return lambda seen: any(marker in prompt for prompt in seen.prompts)


def at(number: int) -> Callable[[Seen], bool]:
    """One step."""
    return lambda seen: seen.number == number


def together(seen: Seen) -> bool:
    """A step of more than one request."""
    return len(seen.rows) > 1


def truncated(seen: Seen, logits: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
    """Logits of a smaller vocabulary than the model's."""
    return None if logits is None else logits[:, :-1]

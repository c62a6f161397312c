"""A trace's own tokens fed again through the graph, by the golden loop or by one with a fault built in.

What a program saw is reproduced by the loop that it has: if the golden one does not, a faulty one may.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bento_kv.doctor.loop.trace import Trace, TraceStep
from bento_kv.runtime.graph import Cache, CachedGraph, GraphOutput, cache_length

# A difference relative to the largest value; other kernels and half precision stay below it.
LIMIT = 1e-2
# A token that is this close to the likeliest one may have been it elsewhere.
_TIE = 3e-3
_MASKED = 1e30


@dataclass(frozen=True, slots=True)
class Held:
    """What a loop has at hand when it prepares a step after the first one.

    Attributes:
        past: the right one, cut to the length that the trace gives.
        present: the one that the step before returned, whole.
        older: the present of the step before that; of length 0 where there is none.
        zero: the present of step 0.
        mask: `[rows, past + tokens]`; None for all.
        positions: `[rows, tokens]`.
    """

    step: TraceStep
    past: Cache
    present: Cache
    older: Cache
    zero: Cache
    mask: NDArray[np.int64] | None
    positions: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Feeds:
    """What goes in beside the ids. Positions of None leave them to the graph."""

    past: Cache
    mask: NDArray[np.int64] | None
    positions: NDArray[np.int64] | None


Prepare = Callable[[Held], Feeds]


def golden(held: Held) -> Feeds:
    return Feeds(held.past, held.mask, held.positions)


@dataclass(frozen=True, slots=True)
class Chosen:
    """What the trace says of the logits of one row at one position: the token taken there, and the likeliest ones."""

    row: int
    at: int  # token of the step
    token: int | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class Score:
    """How a replay compares with the trace; errors are relative, and by step.

    Attributes:
        errors: largest error of a step, its tokens' distance from the likeliest one included.
        numbers: largest error of logits and sums alone.
        tokens: steps whose token is not the likeliest one.
    """

    errors: dict[int, float] = field(default_factory=dict)
    numbers: dict[int, float] = field(default_factory=dict)
    tokens: dict[int, float] = field(default_factory=dict)

    @property
    def worst_number(self) -> float:
        return max(self.numbers.values(), default=0.0)

    @property
    def first(self) -> int | None:
        """The first step that differs."""
        return next((step for step, error in self.errors.items() if not error <= LIMIT), None)

    def first_above(self, limit: float) -> int:
        """The first step whose error is above the limit; the last one if none is."""
        return next((step for step, error in self.errors.items() if not error <= limit), max(self.errors))


class Replay:
    """Runs a trace's tokens again.

    Args:
        pads: padding on the left of each row.
        chosen: by step, what there is to compare.
        sums: whether the sums of the trace can be compared.
    """

    def __init__(
        self, graph: CachedGraph, trace: Trace, pads: NDArray[np.int64], chosen: dict[int, list[Chosen]], sums: bool
    ) -> None:
        self._graph = graph
        self._trace = trace
        self._pads = pads
        self._chosen = chosen
        self._sums = sums

    def outputs(self, prepare: Prepare = golden, start: int = 1) -> Iterator[tuple[TraceStep, Cache, GraphOutput]]:
        """Step, past and output of each step; `prepare` is asked from step `start` on.

        Raises:
            DecoderError: the runtime refuses what was prepared.
        """
        rows = self._trace.rows
        past = older = zero = self._graph.empty_cache(rows)
        last: GraphOutput | None = None
        for step in self._trace.steps:
            positions = self._positions(step)
            mask = self._mask(step.past_length + step.width)
            feeds = Feeds(past, mask, positions)
            if last is not None:
                right = _cut(last.present, step.past_length)
                held = Held(step, right, last.present, older, zero, mask, positions)
                feeds = (prepare if step.step >= start else golden)(held)
            given = feeds.positions if self._graph.takes_positions else None
            output = self._graph.run(step.ids, feeds.past, mask=feeds.mask, positions=given)
            yield step, feeds.past, output
            older = last.present if last is not None else older
            zero = output.present if last is None else zero
            last = output

    def score(self, prepare: Prepare = golden, start: int = 1, *, stop: bool = False) -> Score:
        """Compare a replay with the trace; `stop` at the first step that differs."""
        score = Score()
        for step, past, output in self.outputs(prepare, start):
            self._see(score, step, past, output)
            if stop and score.errors.get(step.step, 0.0) > LIMIT:
                break
        return score

    def _see(self, score: Score, step: TraceStep, past: Cache, output: GraphOutput) -> None:
        numbers: list[float] = []
        for choice in self._chosen.get(step.step, []):
            logits = logits_at(output, step, choice)
            if logits is None:
                continue
            gap, top = chosen_errors(logits, choice)
            if gap is not None:
                score.errors[step.step] = max(score.errors.get(step.step, 0.0), gap)
                if gap > LIMIT:
                    score.tokens[step.step] = gap
            if top is not None:
                numbers.append(top)
        if self._sums:
            numbers += [_sums_error(step.past_sum, past), _sums_error(step.present_sum, output.present)]
        if numbers:
            score.numbers[step.step] = max(numbers)
            score.errors[step.step] = max(score.errors.get(step.step, 0.0), *numbers)

    def _positions(self, step: TraceStep) -> NDArray[np.int64]:
        columns = np.arange(step.past_length, step.past_length + step.width, dtype=np.int64)[None]
        positions: NDArray[np.int64] = np.maximum(columns - self._pads[:, None], 0)
        return positions

    def _mask(self, length: int) -> NDArray[np.int64] | None:
        if not self._graph.takes_mask or not self._pads.any():
            return None
        return (np.arange(length)[None] >= self._pads[:, None]).astype(np.int64)


def logits_at(output: GraphOutput, step: TraceStep, choice: Chosen) -> NDArray[np.float32] | None:
    """`[vocab_size]` where the token was chosen; None where the graph does not give them."""
    from_end = step.width - choice.at
    return output.logits[choice.row, -from_end] if from_end <= output.logits.shape[1] else None


def chosen_errors(logits: NDArray[np.float32], choice: Chosen) -> tuple[float | None, float | None]:
    """Errors of the token and of the likeliest ones' logits; None for what the trace does not say."""
    gap = None if choice.token is None else _gap(logits, choice.token)
    return gap, _top_error(logits, choice.top) if choice.top else None


def _cut(cache: Cache, length: int) -> Cache:
    return cache if cache_length(cache) <= length else [(k[:, :, :length], v[:, :, :length]) for k, v in cache]


def _scale(logits: NDArray[np.float32]) -> float:
    magnitudes = np.abs(logits)
    return max(1.0, float(magnitudes.max(initial=0.0, where=magnitudes < _MASKED)))


def _gap(logits: NDArray[np.float32], token: int) -> float:
    """How far the token is from the likeliest one; scaled so that LIMIT is its limit too."""
    if token >= len(logits):
        return float("inf")
    gap = float(logits.max() - logits[token]) / _scale(logits) * (LIMIT / _TIE)
    return gap if np.isfinite(gap) else float("inf")


def _top_error(logits: NDArray[np.float32], top: tuple[tuple[int, float], ...]) -> float:
    if any(token >= len(logits) for token, _ in top):
        return float("inf")
    errors = [abs(float(logits[token]) - value) for token, value in top]
    # And no other token may come out likelier than the likeliest.
    errors.append(float(logits.max()) - max(value for _, value in top))
    error = max(errors) / _scale(logits)
    return error if np.isfinite(error) else float("inf")


def _sums_error(sums: tuple[float, ...] | None, cache: Cache) -> float:
    if sums is None:
        return 0.0
    worst = 0.0
    for given, side in zip(sums, (side for layer in cache for side in layer), strict=True):
        wide = side.astype(np.float64)
        worst = max(worst, abs(float(wide.sum()) - given) / max(1.0, float(np.abs(wide).sum())))
    return worst if np.isfinite(worst) else float("inf")

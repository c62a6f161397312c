"""A row of a trace by itself: its own tokens, without what it was padded with, as a right loop would feed them.

Where its tokens and logits are those that come out, it does not matter where the loop had put them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bento_kv.doctor.loop.choices import choices_of, first_decoded
from bento_kv.doctor.loop.fields import ended_rows
from bento_kv.doctor.loop.replay import Chosen, Prepare, Replay, Score, golden
from bento_kv.doctor.loop.structure import Structure, judge_structure
from bento_kv.doctor.loop.trace import Trace, TraceStep
from bento_kv.doctor.loop.walk import RIGHT
from bento_kv.errors import DecoderError
from bento_kv.runtime.graph import CachedGraph

_GUESSES = 32  # lengths of padding that are tried on a side, where nothing tells them


@dataclass(frozen=True, slots=True)
class Padding:
    """`pads` by row, on the left; -1 where a row's padding cannot be told. `sure` if it was told by the trace."""

    pads: NDArray[np.int64]
    sure: bool


@dataclass(frozen=True, slots=True)
class Text:
    """Where a row's own tokens stand: behind so many others in step 0, and before so many in the prompt's last step."""

    left: int
    right: int


def padding_of(trace: Trace, pad_token_id: int | None) -> Padding:
    """From the positions of step 0, or else from the padding token."""
    zero, ids = trace.steps[0], trace.steps[0].ids
    none = np.zeros(trace.rows, np.int64)
    if zero.position_ids is not None:
        pads = np.clip(zero.width - 1 - np.array(zero.position_ids)[:, -1], 0, zero.width - 1)
        alike = [len(set(ids[row, : pads[row]].tolist())) <= 1 for row in range(trace.rows)]
        return Padding(np.where(alike, pads, 0), True)
    if trace.rows == 1:
        return Padding(none, True)
    if pad_token_id is None:
        return Padding(none, False)
    is_pad = ids == pad_token_id
    pads = np.where(is_pad.all(axis=1), zero.width - 1, (~is_pad).argmax(axis=1))
    # Where padding and the token that begins a text are one, the longest row still has it.
    pads = pads - pads.min()
    return Padding(np.where(is_pad[:, -1], -1, pads), True)


class Alone:
    """The rows of one trace, each by itself.

    Args:
        graph: the decoder that the trace was made with, whose export is right.
        pad_token_id: what rows are padded with, where the user says so.
    """

    def __init__(
        self, graph: CachedGraph, trace: Trace, structure: Structure, padding: Padding, pad_token_id: int | None
    ) -> None:
        self._graph = graph
        self._trace = trace
        self._appends = bool(structure.findings) and not all(walked.kind in RIGHT for walked in structure.walked)
        self._padding = padding
        self._pad_token_id = pad_token_id
        self._ended = ended_rows(trace, pad_token_id)
        self._texts: dict[int, Text | None] = {}
        self.prompt = first_decoded(structure)  # the step that feeds the prompt's last tokens
        self.numbers = sum(step.logits_top is not None for step in trace.steps[1:])  # steps behind a past that have any

    def texts(self) -> list[Text | None]:
        """By row, where its tokens stand if its tokens and logits are those of a right loop; None if they are not."""
        return [self.text(row) for row in range(self._trace.rows)]

    def text(self, row: int) -> Text | None:
        """The same of one row."""
        if row not in self._texts:
            self._texts[row] = next((text for text in self._candidates(row) if self._fits(row, text)), None)
        return self._texts[row]

    def right_until(self, row: int) -> int | None:
        """The first step at which a row differs that is padded on the right, and is right as far as its prompt.

        None if it is not, or does not differ.
        """
        if not self.numbers or self.text(row) is not None:
            return None
        texts = [text for text in self._candidates(row) if text.right]
        firsts = [self.score(row, text, stop=True).first or 0 for text in texts]
        best = max(firsts, default=0)
        return best if best > self.prompt else None

    def score(self, row: int, text: Text, prepare: Prepare = golden, start: int = 1, *, stop: bool = False) -> Score:
        """How a row compares with a loop that feeds its own tokens only; up to where it has ended.

        Raises:
            DecoderError: the runtime refuses what is fed.
        """
        replay = self._replay(row, text)
        return replay.score(prepare, start, stop=stop)

    def trace_of(self, row: int, text: Text) -> Trace:
        """The steps of one row without its padding, with the lengths that a right loop would have."""
        steps: list[TraceStep] = []
        held = hidden = 0
        for step in self._trace.steps:
            left = text.left if step.step == 0 else 0
            end = step.width - (text.right if step.step == self.prompt else 0)
            past = held if self._appends else step.past_length - hidden
            steps.append(
                TraceStep(
                    step=step.step,
                    input_ids=(step.input_ids[row][left:end],),
                    past_length=past,
                    position_ids=None if step.position_ids is None else (step.position_ids[row][left:end],),
                    next_token=None if step.next_token is None else (step.next_token[row],),
                    logits_top=None if step.logits_top is None else (step.logits_top[row],),
                )
            )
            held, hidden = past + end - left, hidden + left + step.width - end
        return Trace(tuple(steps))

    def choice(self, row: int) -> Chosen | None:
        """What the row went on with after its prompt, at the last token that was fed; None if the trace does not say."""
        trace = self.trace_of(row, Text(0, 0))
        choices = choices_of(trace, judge_structure(trace)).get(self.prompt, [])
        return replace(choices[0], at=self._trace.steps[self.prompt].width - 1) if choices else None

    def padded_right(self, row: int) -> Iterator[Text]:
        """How a row may be padded on the right, as far as its tokens look like padding.

        They are the token that is named as padding; or several of one that no other row ends in, and that stands nowhere
        else.
        """
        ids = self._trace.steps[self.prompt].input_ids
        run, last = _run(ids[row][::-1]), ids[row][-1]
        if self._pad_token_id is not None:
            likely = last == self._pad_token_id
        else:
            elsewhere = [*ids[row][:-run], *(token for other in ids if other[-1] != last for token in other)]
            likely = run > 1 and any(other[-1] != last for other in ids) and last not in elsewhere
        if likely and run < len(ids[row]):
            yield Text(0, run)
            if run > 1:
                yield Text(0, run - 1)  # a text may end in what it is padded with

    def _candidates(self, row: int) -> Iterator[Text]:
        left = max(int(self._padding.pads[row]), 0)
        yield Text(left, 0)
        yield from self.padded_right(row)
        if left:
            yield Text(0, 0)
        if not self.numbers:
            return  # few tokens are little to guess by
        last = self._trace.steps[self.prompt].input_ids[row]
        first = self._trace.steps[0].input_ids[row]
        yield from (Text(0, right) for right in _lengths(last[::-1]))
        yield from (Text(left, 0) for left in _lengths(first))

    def _fits(self, row: int, text: Text) -> bool:
        try:
            score = self.score(row, text, stop=True)
        except DecoderError:
            return False
        return score.first is None and any(score.errors)  # with a step behind a past

    def _replay(self, row: int, text: Text) -> Replay:
        trace = self.trace_of(row, text)
        choices = choices_of(trace, judge_structure(trace))
        kept = {step: given for step, given in choices.items() if step + 1 < self._ended[row]}
        return Replay(self._graph, trace, np.zeros(1, np.int64), kept, sums=False)


def _run(ids: Sequence[int]) -> int:
    """How many of the first tokens are one and the same."""
    return next((at for at, token in enumerate(ids) if token != ids[0]), len(ids))


def _lengths(ids: Sequence[int]) -> range:
    return range(1, min(_run(ids), len(ids) - 1, _GUESSES) + 1)

"""Numbers before lengths: a loop whose tokens and logits are those of a right loop is right, however it pads or places.

They count only where they can tell: the fault that the lengths speak of has to give other ones. Where the trace has none,
the lengths decide, and the finding says so.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from bento_kv.doctor.loop.alone import Alone, Text
from bento_kv.doctor.loop.faulty import faulty_loops
from bento_kv.doctor.loop.replay import LIMIT, Feeds, Held, Prepare
from bento_kv.doctor.loop.structure import Structure
from bento_kv.doctor.loop.trace import Trace, TraceStep
from bento_kv.doctor.records import sentence
from bento_kv.errors import DecoderError
from bento_kv.runtime.graph import CachedGraph

_ENOUGH = 2  # steps behind a past whose logits the trace has


def overrule(trace: Trace, structure: Structure, graph: CachedGraph, alone: Alone) -> int:
    """Take back findings that speak of placing, where the numbers are right all the same; else say why they stand.

    Returns:
        How many steps' numbers were compared.
    """
    if not structure.placing or not structure.findings:
        return 0
    if (torn := _contradiction(trace)) is not None:
        _because(structure, f"the trace contradicts itself: {torn}")
        return 0
    if alone.numbers < _ENOUGH:
        _because(structure, "lengths and positions alone say so: the trace has no `logits_top` behind a past to go by")
        return 0
    texts = alone.texts()
    right = [text for text in texts if text is not None]
    if len(right) < len(texts):
        row = texts.index(None)
        first = _first_other(alone, row)
        where = f", of row {row}" if trace.rows > 1 else ""
        if first is not None:
            _because(structure, f"the logits{where} are not those of a right loop either, first at step {first}")
        return alone.numbers
    if _looks_alike(trace, structure, graph, alone, right):
        _because(structure, "with that fault the logits would be the same here, so that they say nothing against it")
        return alone.numbers
    _take_back(structure, len(trace.steps))
    return len(trace.steps)


def _contradiction(trace: Trace) -> str | None:
    for step in trace.steps:
        if step.present_length and step.present_length < step.past_length:
            return f"step {step.step} has a past of {step.past_length} positions and a present of {step.present_length}"
    return None


def _first_other(alone: Alone, row: int) -> int | None:
    try:
        return alone.score(row, Text(0, 0), stop=True).first
    except DecoderError:
        return None


def _because(structure: Structure, reason: str) -> None:
    """The reason behind the first finding."""
    step, finding = structure.findings[0]
    explain = f"{finding.explain} {sentence(reason)}"
    structure.findings[0] = (step, finding.model_copy(update={"explain": explain}))


def _take_back(structure: Structure, steps: int) -> None:
    _, finding = structure.findings[0]
    structure.findings.clear()
    structure.notes.append(
        f"{finding.explain} Its tokens and logits are those of a right loop at all {steps} steps all the same, so it is "
        "right: what it holds besides is masked"
    )


def _looks_alike(trace: Trace, structure: Structure, graph: CachedGraph, alone: Alone, texts: list[Text]) -> bool:
    """Whether a loop with a fault of the kind that was found gives every row what the trace has."""
    ids = {finding.id for _, finding in structure.findings}
    faults: list[tuple[Prepare, int]] = [
        (loop.prepare, 1) for loop in faulty_loops(graph, rows=1, padded=False) if loop.id in ids
    ]
    for prepare, start in faults:
        if all(_gives(alone, row, text, prepare, start) for row, text in enumerate(texts)):
            return True
    return any(
        all(_gives(alone, row, text, printed, 0) for row, text in enumerate(texts))
        for printed in _as_printed(trace, graph, alone, texts)
    )


def _gives(alone: Alone, row: int, text: Text, prepare: Prepare, start: int) -> bool:
    try:
        score = alone.score(row, text, prepare, start, stop=True)
    except DecoderError:
        return False
    return score.worst_number <= LIMIT and score.first is None


def _as_printed(trace: Trace, graph: CachedGraph, alone: Alone, texts: list[Text]) -> Iterator[Prepare]:
    """Loops that do what the lengths say: a shorter past, or one that begins with zeros that are seen; and its positions."""
    lengths = [step.past_length for step in trace.steps]
    own = [step.past_length for step in alone.trace_of(0, texts[0]).steps]
    shorter = any(given < right for given, right in zip(lengths, own, strict=True))
    before = lengths[0]

    def cut(held: Held) -> Feeds:
        length = min(lengths[held.step.step], held.step.past_length)
        return Feeds([(k[:, :, :length], v[:, :, :length]) for k, v in held.past], None, held.positions)

    def visible(held: Held) -> Feeds:
        def behind(array: NDArray[np.generic]) -> NDArray[np.generic]:
            if array.shape[2] > held.step.past_length:
                return array  # zeros were put before it at an earlier step
            zeros = np.zeros((*array.shape[:2], before, array.shape[3]), array.dtype)
            return np.concatenate((zeros, array), axis=2)

        return Feeds([(behind(k), behind(v)) for k, v in held.present], None, held.positions)

    def shifted(held: Held) -> Feeds:
        return Feeds(visible(held).past, None, held.positions + before)

    def printed(held: Held) -> Feeds:
        step: TraceStep = held.step
        return Feeds(held.past, held.mask, np.array(step.position_ids))

    if shorter:
        yield cut
    if before:
        yield visible
        yield shifted
    if graph.takes_positions and _positions_differ(alone, texts):
        yield printed


def _positions_differ(alone: Alone, texts: list[Text]) -> bool:
    """Whether the positions of the trace are others than those behind the rows' own tokens."""
    for row, text in enumerate(texts):
        for step in alone.trace_of(row, text).steps:
            right = tuple(range(step.past_length, step.past_length + step.width))
            if step.position_ids is None:
                return False
            if step.position_ids[0] != right:
                return True
    return False

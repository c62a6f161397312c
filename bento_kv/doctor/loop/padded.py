"""The faults of padding on the right: a row goes on with what is chosen after its padding, or sees it later."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from bento_kv.doctor.loop.alone import Alone, Text
from bento_kv.doctor.loop.replay import LIMIT, Chosen, chosen_errors
from bento_kv.doctor.loop.structure import Structure
from bento_kv.doctor.loop.trace import Trace
from bento_kv.errors import DecoderError
from bento_kv.runtime.graph import CachedGraph

_MANY = 3  # tokens that are one and the same, and stand nowhere else, are padding rather than text


def judge_right_padding(trace: Trace, structure: Structure, graph: CachedGraph, alone: Alone, *, told: bool) -> bool:
    """Add the fault if a row has it.

    What comes out behind padding that is not masked is what comes out behind a text that ends in the same tokens, and that is
    a right loop. Such tokens are text in a row alone, which nothing pads, and, without being told, where there are but two
    of them, as in "!!". A note says so.

    Args:
        told: the user says what rows are padded with.

    Returns:
        Whether it was found.
    """
    for row in range(trace.rows):
        for text in alone.padded_right(row):
            as_text = alone.text(row)
            if as_text not in (None, Text(0, 0)) or not _is_after_padding(graph, trace, alone, row, text):
                continue
            if as_text is not None and not (trace.rows > 1 and (told or text.right >= _MANY)):
                if trace.rows > 1:
                    _may_be_padding(structure, trace.steps[alone.prompt].input_ids[row][-1], row)
            else:
                structure.findings.clear()  # where the padding stands follows from it
                _chosen_after_padding(structure, alone.prompt, trace, row, text, told=told)
                return True
        if (first := alone.right_until(row)) is not None:
            structure.findings.clear()
            _padding_seen(structure, first, row)
            return True
    return False


def _is_after_padding(graph: CachedGraph, trace: Trace, alone: Alone, row: int, text: Text) -> bool:
    """Whether what the row goes on with comes out behind its padding, masked or not, wherever that is placed."""
    choice = alone.choice(row)
    if choice is None or trace.steps[alone.prompt].width != len(trace.steps[0].input_ids[row]) or alone.prompt:
        return False
    ids = trace.steps[0].ids[row : row + 1]
    own = ids.shape[1] - text.right
    if _agrees(graph, ids[:, :own], choice, None, None):
        return False  # its own last token gives it too
    masks = [None]
    if graph.takes_mask:
        masks.append((np.arange(ids.shape[1])[None] < own).astype(np.int64))
    places = list(_places(ids.shape[1], own)) if graph.takes_positions else [None]
    return any(_agrees(graph, ids, choice, mask, place) for mask in masks for place in places)


def _places(width: int, own: int) -> Iterator[NDArray[np.int64] | None]:
    """Positions that programs give padding: counted on, those of the last token, or 1 (transformers' `generate`)."""
    columns = np.arange(width, dtype=np.int64)[None]
    yield None
    yield np.minimum(columns, own - 1)
    yield np.where(columns < own, columns, 1)


def _agrees(
    graph: CachedGraph,
    ids: NDArray[np.int64],
    choice: Chosen,
    mask: NDArray[np.int64] | None,
    positions: NDArray[np.int64] | None,
) -> bool:
    try:
        logits = graph.run(ids, graph.empty_cache(1), mask=mask, positions=positions).logits[0, -1]
    except DecoderError:
        return False
    errors = [error for error in chosen_errors(logits, choice) if error is not None]
    return bool(errors) and max(errors) <= LIMIT


def _chosen_after_padding(structure: Structure, step: int, trace: Trace, row: int, text: Text, *, told: bool) -> None:
    ids = trace.steps[step].input_ids[row]
    explain = (
        f"step {step}: row {row} has {len(ids) - text.right} tokens and, behind them, {text.right} of padding ({ids[-1]}); "
        "the loop goes on with what is chosen after the padding instead of after the row's own last token"
    )
    if not told:
        explain += f". {ids[-1]} is taken for padding, since no other row ends in it: `--pad-token-id` says what is"
    fix = (
        "take each row's logits at its own last token, where its attention mask has its last 1; or pad on the left, where "
        "all rows end in the last column"
    )
    structure.add(step, "tokens-diverge", explain, fix)


def _may_be_padding(structure: Structure, token: int, row: int) -> None:
    note = (
        f"row {row} ends in {token}: taken for text. If it is padding, the loop goes on with what is chosen after the padding; "
        f"`--pad-token-id {token}` says that it is"
    )
    if note not in structure.notes:
        structure.notes.append(note)


def _padding_seen(structure: Structure, step: int, row: int) -> None:
    explain = (
        f"step {step}: row {row} is padded on the right, and up to here its tokens and logits are those of its own tokens; "
        "from here on they are not: its padding is seen, or counted in its positions"
    )
    fix = (
        "keep zeros in each row's attention mask where its padding stands, at every step, and count its positions without "
        "the padding; or pad on the left"
    )
    structure.add(step, "tokens-diverge", explain, fix)

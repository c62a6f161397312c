"""The loop's faults that the optional fields show: positions, the mask's length, the tokens chosen, sums of the cache.

Only steps whose past and tokens are as they should be are looked at, so that nothing here follows from a fault there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bento_kv.doctor.faults import LoopFaultId
from bento_kv.doctor.loop.structure import Structure
from bento_kv.doctor.loop.trace import Trace
from bento_kv.doctor.loop.walk import RIGHT, Kind, Walked

# Of sums that a program took of the same numbers twice; another cache is further away than that.
_SAME = 1e-4
_OTHER = 1e-2

Sums = tuple[float, ...]


def judge_fields(trace: Trace, structure: Structure, pads: NDArray[np.int64], pad_token_id: int | None) -> None:
    """Add what is found to the structure's findings; at most one of each kind.

    Args:
        pads: padding on the left of each row.
        pad_token_id: what rows are fed that have ended.
    """
    steps = [w for w in structure.walked if w.as_expected]
    right = [w for w in steps if w.kind in RIGHT]
    _positions(right, structure, pads)
    _mask(right, structure)
    if not structure.findings:
        _tokens(trace, structure, pad_token_id)
        _sums(structure)
    _presents(right, structure)


def _positions(steps: list[Walked], structure: Structure, pads: NDArray[np.int64]) -> None:
    before: NDArray[np.int64] | None = None
    for walked in steps:
        step = walked.step
        if step.position_ids is None:
            continue
        given = np.array(step.position_ids)
        columns = np.arange(step.past_length, step.past_length + step.width)[None]
        expected = columns - pads[:, None]
        wrong = ((given != expected) & (expected >= 0)).any(axis=1)
        if wrong.any():
            row = int(wrong.argmax())
            explain = _explain_positions(step.step, given[row], expected[row], before, row)
            structure.add(step.step, "position-not-advanced", explain, placing=True)
            return
        before = given


def _explain_positions(
    number: int, given: NDArray[np.int64], expected: NDArray[np.int64], before: NDArray[np.int64] | None, row: int
) -> str:
    shift = int(given[-1] - expected[-1])
    if number and given[0] == 0:
        how = "they start at 0 again"
    elif before is not None and given[-1] == before[row, -1]:
        how = "they are those of the step before"
    elif np.array_equal(given - expected, np.full_like(given, shift)):
        how = f"they are {abs(shift)} too {'high' if shift > 0 else 'low'}"
    else:
        how = "they do not follow one another"
    where = f" of row {row}" if row else ""
    return f"step {number}: positions {_span(given)}{where} where {_span(expected)} is right: {how}"


def _span(values: NDArray[np.int64]) -> str:
    return f"{values[0]}" if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _mask(steps: list[Walked], structure: Structure) -> None:
    lengths = {w.step.attention_mask_length for w in structure.walked} - {None}
    longest = max(w.step.past_length + w.step.width for w in structure.walked)
    if len(lengths) == 1 and len(structure.walked) > 1 and (capacity := lengths.pop()) and capacity >= longest:
        structure.notes.append(f"the mask is {capacity} long at every step: taken as the capacity of a padded cache")
        return
    for walked in steps:
        step = walked.step
        expected = step.past_length + step.width
        length = step.attention_mask_length
        if length is None or length == expected:
            continue
        if length > expected:
            how = f"{length - expected} too long"
        elif length == step.width:
            how = "it spans the new tokens only, and the past is not seen"
        else:
            how = f"{expected - length} too short"
        structure.add(
            step.step,
            "mask-too-short",
            f"step {step.step}: the mask is {length} long where past and tokens are {step.past_length} + {step.width} = "
            f"{expected}: {how}",
            placing=True,
        )
        return


def _tokens(trace: Trace, structure: Structure, pad_token_id: int | None) -> None:
    """The tokens fed must be the ones that the loop says it chose."""
    ended = ended_rows(trace, pad_token_id)
    for last, walked in zip(structure.walked, structure.walked[1:], strict=False):
        chosen, step = last.step.next_token, walked.step
        again = walked.kind in (Kind.REDO, Kind.RECOMPUTE)
        at = walked.sequence.shape[1] - step.past_length if again else 0
        if chosen is None or walked.kind is Kind.ROLLBACK or at >= step.width:
            continue
        fed = step.ids[:, at]
        wrong = (fed != np.array(chosen)) & ((ended > step.step) | (ended <= len(trace.steps)).all())
        if not wrong.any():
            continue
        prefill = all(w.step.width > 1 for w in structure.walked[: step.step + 1])
        if prefill and step.step > 0 and walked.kind is Kind.APPEND:
            structure.notes.append(
                f"step {step.step} is taken as another chunk of the prompt; leave `next_token` out where the loop goes "
                "on with the prompt"
            )
            continue
        _blame_token(int(wrong.argmax()), int(fed[wrong.argmax()]), last, walked, structure)
        return


def _blame_token(row: int, fed: int, last: Walked, walked: Walked, structure: Structure) -> None:
    chosen = last.step.next_token or ()
    number = walked.step.step
    if fed == last.step.ids[row, -1]:
        how = "the last token of the step before is fed again, and the chosen one never gets into the cache"
    elif fed in chosen:
        how = f"it is the token of row {chosen.index(fed)}"
    else:
        how = "the token in between is lost, or is this still the prompt? Then leave `next_token` out there"
    structure.add(
        number,
        "tokens-diverge",
        f"step {number} feeds token {fed}{f' in row {row}' if row else ''}, and step {number - 1} chose {chosen[row]}: "
        f"{how}",
    )


def ended_rows(trace: Trace, pad_token_id: int | None) -> NDArray[np.int64]:
    """By row, the step from which on it is only fed a filler, because others of its batch go on; past the end if never.

    The filler is the padding, or without one any token that is fed to the end instead of what is chosen; some programs
    print it as what they chose.
    """
    steps = trace.steps
    never = len(steps) + 1
    ended = np.full(trace.rows, never)
    if trace.rows == 1:
        return ended
    for row in range(trace.rows):
        filler = steps[-1].input_ids[row][-1]
        if pad_token_id is not None and filler != pad_token_id:
            continue
        first = len(steps)
        while first > 1 and set(steps[first - 1].input_ids[row]) == {filler}:
            first -= 1
        told = [step for step in range(first, len(steps)) if steps[step - 1].next_token is not None]
        other = [step for step in told if (steps[step - 1].next_token or ())[row] != filler]
        if other:
            ended[row] = min(other)
        elif first + 1 < len(steps) or pad_token_id is not None:
            ended[row] = first
    return ended


def _sums(structure: Structure) -> None:
    """The cache fed must be the one that came out, by its sums."""
    returned: list[tuple[int, Sums]] = []
    for last, walked in zip(structure.walked, structure.walked[1:], strict=False):
        if last.step.present_sum is not None:
            returned.append((last.step.step, last.step.present_sum))
        fed, expected = walked.step.past_sum, last.step.present_sum
        if fed is None or expected is None or len(fed) != len(expected) or walked.kind is not Kind.APPEND:
            continue
        if _close(fed, expected, _SAME):
            continue
        number = walked.step.step
        if (found := _blame_sums(fed, expected, returned[:-1])) is not None:
            structure.add(number, found[0], f"step {number}: {found[1]}")
            return


def _blame_sums(fed: Sums, expected: Sums, older: list[tuple[int, Sums]]) -> tuple[LoopFaultId, str] | None:
    if not any(fed):
        return "past-not-fed", "the past that is fed is empty, or all zeros: nothing was written into it"
    for number, sums in reversed(older):
        if _close(fed, sums, _SAME):
            return "past-stale", f"the past that is fed is what step {number} returned, not the step before"
    order = _order(fed, expected)
    if order is not None:
        wrong = [(_name(to), _name(at)) for to, at in enumerate(order) if to != at]
        pairs = ", ".join(f"{source} is fed as {to}" for to, source in wrong[:3])
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        return "layers-swapped", f"the cache of the step before is fed in another order: {pairs}{more}"
    if not _close(fed, expected, _OTHER):
        return "past-stale", "the sums of the past are not those that the step before returned: another cache is fed"
    return None


def _order(fed: Sums, expected: Sums) -> list[int] | None:
    """Which of the expected sums each fed one is, if all are there once and can be told apart."""
    order: list[int] = []
    for value in fed:
        near = [at for at, other in enumerate(expected) if _close((value,), (other,), _SAME)]
        if len(near) != 1:
            return None
        order += near
    return order if len(set(order)) == len(order) else None


def _name(at: int) -> str:
    return f"layer {at // 2}'s {'values' if at % 2 else 'keys'}"


def _close(one: Sums, other: Sums, limit: float) -> bool:
    return all(abs(a - b) <= limit * max(1.0, abs(b)) for a, b in zip(one, other, strict=True))


def _presents(steps: list[Walked], structure: Structure) -> None:
    """Lengths of what came out that do not fit what went in are the export's business, or misread: a note."""
    lengths = {w.step.present_length for w in structure.walked} - {None}
    for walked in steps:
        step = walked.step
        expected = step.past_length + step.width
        if step.present_length in (None, expected) or structure.findings:
            continue
        if len(lengths) == 1 and len(steps) > 1 and max(length or 0 for length in lengths) >= expected:
            structure.notes.append("`present_length` is the same at every step: taken as the capacity of a buffer")
        else:
            structure.notes.append(
                f"step {step.step}: `present_length` is {step.present_length} where past and tokens are {expected}; if "
                "the graph returned that, its export is wrong (present is not the past with the new tokens behind it)"
            )
        return

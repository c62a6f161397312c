"""The export far along the sequence against the model that it was exported from, as the proof compares its own decoders.

Three ways lead there, and each finds what the others do not: a few tokens moved to positions all over the declared
length, a long prompt, and steps behind a long past that is given to both.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from bento_kv.contract.reference import LayerArrays, NumericReference
from bento_kv.doctor.export.far import LOGITS_BYTES, MOVED, Far, filled, sees_oldest, spread
from bento_kv.doctor.export.probe import cut
from bento_kv.doctor.records import Finding
from bento_kv.errors import DecoderError, GraphLimitError, SourceError
from bento_kv.runtime.graph import Cache

PLACES = 32
PIECE = 64  # positions that long pasts are mixed of
_COMPARED = 64  # logits of a long prompt
# Angles are products of positions and frequencies: where these differ in their last bit, those do in proportion.
_LAST_BITS = 4 * 2.0**-23
_MOST = 0.02  # of the largest logit; where that may explain more, nothing is told by comparing


def check_far_reference(far: Far, reference: NumericReference, limit: float) -> list[Finding]:
    """The first of the three ways on which the two part.

    Args:
        far: of a decoder that was looked at alone.
        reference: of the same weights.
        limit: what an error may be, relative to the largest logit.
    """
    # Positions first: where they alone are wrong, they are the cause of all that follows.
    for way in (_moved, _prompt, _behind_pasts):
        try:
            found = way(far, reference, limit)
        except SourceError as error:
            far.leave(f"what the reference has no answer to: {error}")
            continue
        if found:
            return found
    return []


def _prompt(far: Far, reference: NumericReference, limit: float) -> list[Finding]:
    ids, whole = far.prompt
    length = ids.shape[1]
    kept = min(whole.logits.shape[1], _COMPARED)
    at = sorted({*np.linspace(0, length - 1, kept, dtype=int).tolist()}) if kept > 1 else [length - 1]
    got = whole.logits[0, at] if kept > 1 else whole.logits[0]
    expected = reference.logits(ids[0].tolist(), at=at)
    worst = [far.probe.error(mine, theirs) for mine, theirs in zip(got, expected, strict=True)]
    wrong = [place for place, error in zip(at, worst, strict=True) if not error <= limit]
    if wrong:
        right = [place for place in at if place < wrong[0]]
        text = (
            f"The logits of a prompt of {length} tokens are "
            + (f"the reference's up to position {right[-1]}, and " if right else "")
            + f"off by {max(worst):.2g} of the largest at position {wrong[0]} and behind it, limit {limit:.0e}: a sliding "
            "window that one of the two has, or positions that are computed otherwise."
        )
        return [_finding(f"position {wrong[0]} of a prompt of {length} tokens", text)]
    far.see(length, f"{kept} of the logits of a prompt of {length} tokens against the reference")
    return []


def _moved(far: Far, reference: NumericReference, limit: float) -> list[Finding]:
    """A few tokens at positions all over the range, with nothing before them."""
    probe, declared = far.probe, far.declared
    if not probe.graph.takes_positions or declared is None:
        far.leave("positions by themselves, which are no input of the graph" if declared else "far positions")
        return []
    if declared.steady < declared.length:
        far.leave(f"positions beyond {declared.steady} by themselves: there frequencies depend on the length")
    ids = probe.ids[:, :MOVED]
    affordable = LOGITS_BYTES // (4 * MOVED * probe.full.logits.shape[-1])
    starts = spread(declared.steady, int(min(PLACES, max(2, affordable))))
    expected = reference.at_offsets(ids[0].tolist(), starts)
    right = -1
    for start, wanted in zip(starts, expected, strict=True):
        allowed = max(limit, start * _LAST_BITS)
        if allowed > max(limit, _MOST):
            far.leave(f"positions from {start} on by themselves: there the last bits of an angle decide")
            break
        positions = np.arange(start, start + ids.shape[1])[None]
        got = probe.graph.run(ids, probe.graph.empty_cache(1), positions=positions).logits[0]
        error = probe.error(got, wanted[len(wanted) - len(got) :])
        if not error <= allowed:
            text = (
                f"{MOVED} tokens that begin at position {start} give logits that are off by {error:.2g} of the largest, "
                f"limit {allowed:.1g}"
                + (f"; up to position {right} they are right" if right >= 0 else "")
                + ". Positions are "
                "computed otherwise far out: angles in half precision, a table that ends or wraps, or a scaling of long "
                "contexts that was left out."
            )
            return [_finding(f"position {start} of {declared.length}", text)]
        right = start + MOVED - 1
    far.see(right + 1, f"{MOVED} tokens at {len(starts)} places up to position {right} against the reference")
    return []


def _behind_pasts(far: Far, reference: NumericReference, limit: float) -> list[Finding]:
    """Single tokens behind pasts of every magnitude, the same keys and values being given to both."""
    pieces = _shared(far, reference, limit)
    if pieces is None:
        far.leave("long pasts: the reference keeps another cache than the graph")
        return []
    probe = far.probe
    ids = probe.ids[:, :1]
    longest = far.past_length(far.room - 1)
    reached = 0
    for length in _lengths(longest):
        allowed = max(limit, length * _LAST_BITS)
        if allowed > max(limit, _MOST):
            far.leave(f"pasts of {length} positions and more: there the last bits of an angle decide")
            break
        past = filled(pieces, length)
        theirs: LayerArrays = [(np.asarray(k[0], np.float32), np.asarray(v[0], np.float32)) for k, v in past]
        try:
            got = probe.graph.run(ids, past).logits[0, -1]
        except (DecoderError, GraphLimitError) as error:
            far.leave(f"pasts of {length} positions and more, on which it fails: {error}")
            return []
        error_of = probe.error(got, reference.logits(ids[0].tolist(), past=theirs)[-1])
        if not error_of <= allowed:
            return [_finding(f"1 token behind a past of {length}", _of_past(far, ids, past, length, error_of, allowed))]
        reached = length
    far.see(reached + 1, f"1 token behind pasts of up to {reached} positions that were given to both")
    return []


def _of_past(far: Far, ids: NDArray[np.int64], past: Cache, length: int, error: float, limit: float) -> str:
    text = (
        f"Behind a past of {length} positions, the same for both, the logits are off by {error:.2g} of the largest, limit "
        f"{limit:.1g}. "
    )
    if not sees_oldest(far.probe, ids, past):
        return (
            text + "The graph does not see the older half of its past: a sliding window that the model does not have."
        )
    return text + (
        "The graph sees all of its past: a sliding window of the model that was left out, or positions that are computed "
        "otherwise far out."
    )


def _shared(far: Far, reference: NumericReference, limit: float) -> Cache | None:
    """The reference's keys and values as the graph takes them; None where its cache holds something else."""
    ids, whole = far.prompt
    n = min(PIECE, ids.shape[1])
    theirs = reference.keys_values(ids[0, :n].tolist())
    ours = cut(whole.present, n)
    if len(theirs) != len(ours):
        return None
    pieces: Cache = []
    for (key, value), (own_key, own_value) in zip(theirs, ours, strict=True):
        for own, other in ((own_key, key), (own_value, value)):
            # Keys and values are not evened out by a softmax.
            if own.dtype.kind != "f" or own.shape[1:] != other.shape or not far.probe.error(own[0], other) <= 5 * limit:
                return None
        pieces.append((key[None].astype(own_key.dtype), value[None].astype(own_value.dtype)))
    return pieces


def _lengths(longest: int) -> Iterator[int]:
    """Of every magnitude, the longest last."""
    length = PIECE - 1
    while length < longest:
        yield length
        length = 4 * (length + 1) - 1
    if longest > 0:
        yield longest


def _finding(where: str, text: str) -> Finding:
    return Finding(
        id="numeric-mismatch",
        where=where,
        explain=text,
        fix="Compute angles and tables of positions in fp32 and to the model's length, with the windows and the scaling of "
        "its configuration: `bento-kv export SOURCE`, or `bento-kv repair FILE -o REPAIRED --reference SOURCE`.",
    )

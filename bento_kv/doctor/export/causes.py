"""Why cached steps differ from the uncached run: what they do not see, see too much of, or put in the wrong place.

Each cause is tried by changing what it speaks of and looking whether the logits move.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from bento_kv.doctor.export.probe import LENGTH, REEXPORT, Probe, altered, noise
from bento_kv.doctor.records import Finding
from bento_kv.errors import DecoderError
from bento_kv.runtime.graph import Cache

Step = tuple[int, int]  # past and new tokens
_SIDES = ("keys", "values")


def causes(probe: Probe, mismatched: Sequence[Step], names: Sequence[tuple[str, str]]) -> Iterator[Finding]:
    """Findings that explain the mismatch, the most telling first; none if it is something else.

    Args:
        probe: of the graph.
        mismatched: steps whose logits differ.
        names: of the present outputs by layer; a side without a name is in the other's tensor.
    """
    held = max(held for held, _ in mismatched)
    ignored = _ignored(probe, held, names)
    # Where one position is seen, the softmax over it is 1 whatever its key: that keys do not matter follows from a mask.
    if any(side for _, side in ignored) or (ignored and not any(own[1] for own in names)):
        yield _past_ignored(held, ignored, names)
        return
    place = _misplaced(probe, mismatched)
    if place is not None:
        yield _position_ignores_past(probe, *place)
    unseen = _unseen(probe, mismatched) or _within_chunk(probe, mismatched)
    if unseen and not (place is not None and unseen.window):
        yield _mask_ignores_past(probe, unseen.text)
    elif place is None and ignored:
        yield _past_ignored(held, ignored, names)
    elif place is None and positions_matter(probe) and not _moves(probe, held):
        yield _position_ignores_past(probe, held, None)


def _ignored(probe: Probe, held: int, names: Sequence[tuple[str, str]]) -> list[tuple[int, int]]:
    """Layers and sides whose past may hold anything."""
    own = probe.step(held, 1).logits
    found = []
    for layer, sides in enumerate(names):
        for side in (s for s in (0, 1) if sides[s]):
            past: Cache = list(probe.past(held))
            pair = list(past[layer])
            pair[side] = noise(pair[side], layer)
            past[layer] = (pair[0], pair[1])
            if not probe.differ(probe.graph.run(probe.ids[:, held : held + 1], past).logits, own):
                found.append((layer, side))
    return found


def _misplaced(probe: Probe, mismatched: Sequence[Step]) -> tuple[int, int] | None:
    """A past length, and where the token behind it is placed instead; None if it is placed rightly.

    The first layer's keys depend on the token and its position alone, so one token all along a sequence shows what
    its key is at each position.
    """
    for held in sorted({held for held, _ in mismatched}):
        keys = _keys_by_position(probe, probe.ids[:, held : held + 1])
        own = probe.step(held, 1).present[0][0][:, :, -1]
        if probe.error(own, keys[:, :, held]) <= probe.limit:
            continue
        for at in range(keys.shape[2]):
            if at != held and probe.error(own, keys[:, :, at]) <= probe.limit:
                return held, at
    return None


def _keys_by_position(probe: Probe, token: NDArray[np.int64]) -> NDArray[np.generic]:
    """Of the first layer, `[1, heads, positions, dim]`; twice as many positions as are tried, if the model has them."""
    try:
        return probe.uncached(np.repeat(token, 2 * LENGTH, axis=1)).present[0][0]
    except DecoderError:
        return probe.uncached(np.repeat(token, LENGTH, axis=1)).present[0][0]


def positions_matter(probe: Probe) -> bool:
    """Whether the input position_ids, spread out, changes what is computed without a past."""
    if not probe.graph.takes_positions:
        return False
    spread = 2 * np.arange(probe.ids.shape[1])[None]
    return probe.differ(probe.uncached(probe.ids, positions=spread).logits, probe.full.logits)


def _moves(probe: Probe, held: int) -> bool:
    """Whether position_ids changes what is computed behind a past."""
    moved = probe.graph.run(probe.ids[:, held : held + 1], probe.past(held), positions=np.array([[held + 3]]))
    return probe.differ(moved.logits, probe.step(held, 1).logits)


class _Unseen:
    """What a token does not see, or should not: in words, and whether it may as well be a sliding window."""

    def __init__(self, text: str, *, window: bool = False) -> None:
        self.text = text
        self.window = window


def _unseen(probe: Probe, mismatched: Sequence[Step]) -> _Unseen | None:
    """Positions of the past whose content changes nothing.

    A sliding window hides the oldest ones, and rightly so. They are the cause if no step differs without them.
    """
    hidden = {step: _hidden(probe, step[0]) for step in mismatched if step[1] == 1}
    text = "1 token behind a past of {} does not see its positions {}"
    for (held, _), places in hidden.items():
        if places and places != list(range(len(places))):
            return _Unseen(text.format(held, _listed(places)))
    if hidden and all(hidden.values()):
        (held, _), places = max(hidden.items())
        return _Unseen(text.format(held, _listed(places)), window=True)
    return None


def _hidden(probe: Probe, held: int) -> list[int]:
    ids, own = probe.ids[:, held : held + 1], probe.step(held, 1).logits
    found = []
    for at in range(held):

        def change(array: NDArray[np.generic], at: int = at) -> NDArray[np.generic]:
            other = array.copy()
            other[:, :, at] = noise(array[:, :, at], at) * 3
            return other

        if not probe.differ(probe.graph.run(ids, altered(probe.past(held), change)).logits, own):
            found.append(at)
    return found


def _listed(places: Sequence[int]) -> str:
    return ", ".join(map(str, places[:5])) + (", ..." if len(places) > 5 else "")


def _within_chunk(probe: Probe, mismatched: Sequence[Step]) -> _Unseen | None:
    """Of several tokens behind a past, one that sees the next, or that does not see the one before."""
    chunks = [step for step in mismatched if step[1] > 1]
    if not chunks:
        return None
    held, n = max(chunks, key=lambda step: step[1])
    output = probe.step(held, n)
    if output.logits.shape[1] != n:
        return None
    for at in range(n - 1):
        ids = probe.ids[:, held : held + n].copy()
        ids[:, at + 1 :] = (ids[:, at + 1 :] + 1) % probe.vocab_size
        if probe.differ(probe.graph.run(ids, probe.past(held)).logits[:, : at + 1], output.logits[:, : at + 1]):
            return _Unseen(f"of {n} tokens behind a past of {held}, token {at} sees those that come after it")
        ids = probe.ids[:, held : held + n].copy()
        ids[:, at] = (ids[:, at] + 1) % probe.vocab_size
        if not probe.differ(probe.graph.run(ids, probe.past(held)).logits[:, at + 1], output.logits[:, at + 1]):
            return _Unseen(f"of {n} tokens behind a past of {held}, token {at + 1} does not see token {at}")
    return None


def _past_ignored(held: int, ignored: Sequence[tuple[int, int]], names: Sequence[tuple[str, str]]) -> Finding:
    if len(ignored) == sum(bool(name) for own in names for name in own):
        where, what = "logits", "the logits are the same whatever the past holds"
        harm = "The model answers each token as if nothing came before it."
    else:
        layer, side = ignored[0]
        where = f"{_SIDES[side]} of layer {layer}" + (f" and {len(ignored) - 1} more" if len(ignored) > 1 else "")
        what = f"the logits are the same whatever the past {where} hold"
        harm = "That part of the model answers as if nothing came before, and the text drifts."
    return Finding(
        id="past-ignored",
        where=where,
        explain=f"Behind a past of {held} positions {what}. {harm}",
        fix="The past has to be joined to the new keys and values before attention, in every layer, and the mask must "
        "not hide it. " + REEXPORT,
    )


def _position_ignores_past(probe: Probe, held: int, at: int | None) -> Finding:
    place = "position_ids" if probe.graph.takes_positions else "positions computed in the graph"
    what = f"the new token is placed at position {at}" if at is not None else "position_ids changes nothing"
    return Finding(
        id="position-ignores-past",
        where=f"{place}, keys of layer 0" if at is not None else place,
        explain=f"Behind a past of {held} positions {what}, and it stands at {held}: every cached step sees its tokens "
        "in the wrong order.",
        fix="Derive positions from the length of the past, or take them as the input position_ids and use it as it is. "
        + REEXPORT,
    )


def _mask_ignores_past(probe: Probe, what: str) -> Finding:
    return Finding(
        id="mask-ignores-past",
        where="attention_mask" if probe.graph.takes_mask else "the causal mask in the graph",
        explain=f"{what[0].upper()}{what[1:]}. The mask is not laid out for past and new tokens together.",
        fix="Shift the causal mask by the length of the past and let the attention mask span both. " + REEXPORT,
    )

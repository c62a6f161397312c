"""The cache that a step returns: the past that went in, with the new keys and values behind it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bento_kv.doctor.export.probe import REEXPORT, Probe, noise
from bento_kv.doctor.records import Finding
from bento_kv.runtime.graph import Cache, cache_length


def check_lengths(probe: Probe, names: list[tuple[str, str]]) -> list[Finding]:
    """Step 0 returns a position for each of its tokens, of the shape that a past has; names as in `check_present`."""
    n = probe.ids.shape[1]
    empty = probe.graph.empty_cache(1)
    for layer, sides in enumerate(probe.full.present):
        for name, array, past in zip(names[layer], sides, empty[layer], strict=True):
            if name and (array.shape[1], array.shape[3]) != (past.shape[1], past.shape[3]):
                return [_misfit(name, array.shape, past.shape)]
            if name and array.shape[2] != n:
                return [not_appended(name, f"step 0 of {n} tokens returns {array.shape[2]} positions")]
    return []


def _misfit(name: str, present: tuple[int, ...], past: tuple[int, ...]) -> Finding:
    return Finding(
        id="kv-shape-mismatch",
        where=name,
        explain=f"{name} comes out with {present[1]} heads of {present[3]}, and a past goes in with {past[1]} heads of "
        f"{past[3]}, whatever is declared. The cache that a step returns does not fit into the next step.",
        fix="Return keys and values as they are before they are repeated for the query heads. " + REEXPORT,
    )


def check_present(probe: Probe, names: list[tuple[str, str]]) -> list[Finding]:
    """Present is the past, with the new keys and values behind it, of the same layer and side.

    Args:
        probe: of the graph.
        names: of the present outputs, keys' and values' by layer; the second is empty where one tensor has both.
    """
    held = 5
    past = [
        (np.asarray(noise(key, 2 * layer)), np.asarray(noise(value, 2 * layer + 1)))
        for layer, (key, value) in enumerate(probe.past(held))
    ]
    present = probe.graph.run(probe.ids[:, held : held + 1], past).present
    for layer, sides in enumerate(present):
        for side, array in enumerate(sides):
            finding = _continues(past, array, layer, side, names) if names[layer][side] else None
            if finding is not None:
                return [finding]
    return []


def _continues(
    past: Cache, present: NDArray[np.generic], layer: int, side: int, names: list[tuple[str, str]]
) -> Finding | None:
    own, held = past[layer][side], cache_length(past)
    name, length = names[layer][side], present.shape[2]
    if length != held + 1:
        got = (
            "the new position only" if length == 1 else "no position more" if length == held else f"{length} positions"
        )
        return not_appended(name, f"fed a past of {held} positions and 1 token, it returns {got}")
    if np.array_equal(present[:, :, :held], own):
        return None
    if np.array_equal(present[:, :, 1:], own):
        return not_appended(name, "the new position comes before the past instead of behind it")
    for other, sides in enumerate(past):
        for other_side, array in enumerate(sides):
            if array.shape == own.shape and np.array_equal(present[:, :, :held], array):
                return Finding(
                    id="past-present-unpaired",
                    where=name,
                    explain=f"{name} continues the past of layer {other}, {('keys', 'values')[other_side]}: feeding "
                    "present back by name puts each step's cache into the wrong place.",
                    fix="Exchange the names of the outputs: `bento-kv repair` pairs them as the graph computes them.",
                )
    return not_appended(name, f"its first {held} positions are not the past that was fed")


def not_appended(name: str, what: str) -> Finding:
    """Of the output `name`."""
    return Finding(
        id="present-not-appended",
        where=name,
        explain=f"{name}: {what}. A loop that feeds present back as past loses what came before.",
        fix="Return past and new keys and values joined along the time axis, from every layer. " + REEXPORT,
    )

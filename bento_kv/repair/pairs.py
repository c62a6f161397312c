"""Which present continues which past, told by running; and presents of the type that their pasts have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bento_kv.contract.graph_io import present_name
from bento_kv.doctor.export.loading import Opened
from bento_kv.doctor.export.probe import noise
from bento_kv.errors import DecoderError
from bento_kv.repair.interface import dtype_of, interface_of, rename_ends
from bento_kv.repair.records import Change
from bento_kv.runtime.growing import GrowingGraph
from bento_kv.runtime.pairing import CachePair

_HELD = 4  # positions of the past that is fed
Arrays = Mapping[str, NDArray[np.generic]]


def pair_up(model: ir.Model, opened: Opened) -> tuple[list[Change], list[Change]]:
    """Give each present the name that belongs to the past that it begins with, in place; what was mended, what not.

    Args:
        model: as it was written and opened.
        opened: what it is run by.
    """
    interface = interface_of(model)
    pairs = [pair for pair in interface.caches if pair.past is not None and "time" in pair.axes]
    outputs = [value.name or "" for value in model.graph.outputs if value.name != interface.logits.name]
    try:
        fed, results = _run(opened)
    except DecoderError:
        return [], []  # why it does not run is found and said where its sizes are judged
    continues: dict[str, str] = {}
    left = []
    for pair in pairs:
        past = pair.past.name if pair.past else ""
        found = [name for name in outputs if _begins_with(results[name], fed[past], pair)]
        if len(found) == 1:
            continues[past] = found[0]
        elif pair.present is None or not found:
            left.append(_unpaired(pair, found))
    if len(set(continues.values())) != len(continues):
        return [], left
    return _swap(model, pairs, continues, left)


def _run(opened: Opened) -> tuple[Arrays, Arrays]:
    """A token behind a past in which every layer and side is told apart; what went in and what came out, by name."""
    graph = opened.graph
    if not isinstance(graph, GrowingGraph) or not graph.interface.has_past:
        raise DecoderError("there is nothing to pair")
    past = []
    for layer, sides in enumerate(graph.empty_cache(1)):
        shapes = [(*side.shape[:2], _HELD, side.shape[3]) for side in sides]
        held = [np.empty(shape, side.dtype) for shape, side in zip(shapes, sides, strict=True)]
        past.append((noise(held[0], 2 * layer), noise(held[1], 2 * layer + 1)))
    return graph.run_by_name(np.zeros((1, 1), np.int64), past)


def _begins_with(present: NDArray[np.generic], past: NDArray[np.generic], pair: CachePair) -> bool:
    axis = pair.axes.index("time")
    if present.ndim != past.ndim or present.shape[axis] <= past.shape[axis]:
        return False
    head = np.take(present, range(past.shape[axis]), axis=axis)
    return np.array_equal(head.astype(np.float32), past.astype(np.float32))


def _unpaired(pair: CachePair, found: Sequence[str]) -> Change:
    name = pair.past.name if pair.past else ""
    several = f"{' and '.join(found)} both begin with it" if found else "no output begins with it"
    return Change(
        "past-present-unpaired" if pair.present is None else "present-not-appended",
        name,
        f"the present of {name} cannot be told: {several}. A new export is needed: give the model as --reference",
    )


def _swap(
    model: ir.Model, pairs: Sequence[CachePair], continues: Mapping[str, str], left: list[Change]
) -> tuple[list[Change], list[Change]]:
    """Exchange the names of presents that are each other's; a name of its own for one that had none to go by."""
    names: dict[str, str] = {}
    for pair in pairs:
        past, present = (spec.name if spec else "" for spec in (pair.past, pair.present))
        if past in continues and continues[past] != present:
            names[continues[past]] = present or present_name(pair.layer, pair.side)
    if not names:
        return [], left
    if set(names.values()) - set(names) & {value.name for value in model.graph.outputs}:
        return [], [*left, Change("past-present-unpaired", next(iter(names)), "names of presents are taken twice")]
    rename_ends(model, names)
    shown = ", ".join(f"{old} is now {new}" for old, new in list(names.items())[:4])
    text = (
        f"{len(names)} presents carried the name of another layer or side; each begins with the past whose name it has "
        "now, which was seen by running it"
    )
    return [Change("past-present-unpaired", shown, text)], left


def cast_presents(model: ir.Model) -> list[Change]:
    """Presents in the type of their pasts, in place, so that they can be fed back as they are."""
    differing = {
        pair.present.name: pair.past.dtype
        for pair in interface_of(model).caches
        if pair.past and pair.present and pair.past.dtype != pair.present.dtype
    }
    for index, value in enumerate(model.graph.outputs):
        if value.name not in differing:
            continue
        name, dtype = value.name, dtype_of(differing[value.name])
        cast = ir.node("Cast", [value], {"to": int(dtype)}, name=f"{name}.cast")
        value.name = f"{name}.uncast"
        result = cast.outputs[0]
        result.name, result.dtype, result.shape = name, dtype, value.shape
        model.graph.append(cast)
        model.graph.outputs[index] = result
    if not differing:
        return []
    first = next(iter(differing))
    more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
    return [Change("dtype-mismatch", first + more, f"cast to {differing[first]}, which its past takes")]

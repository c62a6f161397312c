"""The whole decoder again from its model, behind the interface that the old file had, so that a loop fits unchanged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bento_kv.errors import DecoderError, ExportError, first_line
from bento_kv.repair.files import read, write
from bento_kv.repair.names import interface_of
from bento_kv.repair.records import Change
from bento_kv.repair.versions import light
from bento_kv.runtime.interface import Axis, CachePair, Interface

_STANDARD: tuple[Axis, ...] = ("rows", "heads", "time", "dim")


def reexport(
    old: Path,
    reference: str,
    file: Path,
    *,
    progress: Callable[[str], None],
) -> list[Change]:
    """Export `reference` to `file`.

    Args:
        old: the file whose interface is kept, where it can be read.
        reference: a Hugging Face model directory or a hub id.
        file: where to; weights beyond 1 GiB go to `<file>.data`.
        progress: told what is being done.

    Raises:
        SourceError, ExportError: the reference cannot be read, exported.
    """
    from bento_kv.export.growing import export_growing

    interface, changes = _interface(old)
    positions = mask = True
    if interface is not None:
        positions, mask = interface.positions is not None, interface.mask is not None
    export_growing(reference, file, positions=positions, mask=mask, progress=progress)
    model = read(file)
    if interface is not None:
        changes += adapt(model, interface)
        write(model, file)
    return changes


def _interface(old: Path) -> tuple[Interface | None, list[Change]]:
    """The old file's interface; None, and why, where it has none to keep."""
    what = "the common interface: past_key_values.N.key and .value in, present.N.key and .value out"
    try:
        interface = interface_of(read(old))
    except DecoderError as error:
        return None, [
            Change("load-failed", old.name, f"its interface cannot be told ({error}), so the export has {what}")
        ]
    if interface.packed:
        raise ExportError(f"{old} is a decoder of the in-place layout: export it anew with `bento-kv export`")
    if interface.branch is not None:
        return None, [
            Change("names", interface.branch.name, f"one graph serves all steps now, without a switch; it has {what}")
        ]
    return interface, []


def adapt(model: onnx.ModelProto, interface: Interface) -> list[Change]:
    """Put the interface's names, types and order of axes around a model of the common one; it is changed in place."""
    own = interface_of(model)
    changes = [Change("dynamic-axis-baked", "all axes", "exported anew: batch, sequence and past vary")]
    layers = interface.layers
    whole = all(p.past and p.present for p in interface.caches) and layers == own.layers
    before: list[onnx.NodeProto] = []
    after: list[onnx.NodeProto] = []
    names = {own.logits.name: interface.logits.name, own.ids.name: interface.ids.name}
    for mine, theirs in ((own.mask, interface.mask), (own.positions, interface.positions)):
        if mine is not None and theirs is not None:
            names[mine.name] = theirs.name
        elif theirs is not None:
            changes.append(Change("names", theirs.name, "is no input any more: the new export needs none"))
    for theirs in interface.zeros:
        changes.append(Change("names", theirs.name, "is no input any more: it was always zeros"))
    for mine_name, theirs_name in names.items():
        _edge(model, mine_name, theirs_name, _type_of(interface, theirs_name), before, after)
    if interface.mask is not None and len(interface.mask.shape) != 2:
        changes.append(Change("names", interface.mask.name, "is [batch, past + sequence] of 0 and 1 now"))
    if not whole:
        changes.append(
            Change("no-cache-io", "the cache", "has the common names: past_key_values.N.key, present.N.key, ...")
        )
    elif any(_order(pair) is None for pair in interface.caches):
        changes.append(
            Change(
                "names",
                "the cache",
                "the old order of its axes is not kept: [batch, heads, time, dim] by layer and side",
            )
        )
    else:
        for pair in interface.caches:
            _cache_edges(model, own, pair, before, after)
    nodes = [*before, *model.graph.node, *after]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    _order_ends(model, interface)
    try:
        onnx.checker.check_model(light(model)[0])
    except Exception as error:  # a class that onnx does not export
        raise ExportError(
            f"the old inputs and outputs do not fit around the new export: {first_line(error)}"
        ) from error
    return changes


def _order(pair: CachePair) -> tuple[Axis, ...] | None:
    """The axes without the stack, if they are those of the standard in another order."""
    axes = tuple(axis for axis in pair.axes if axis != "stack")
    return axes if sorted(axes) == sorted(_STANDARD) else None


def _type_of(interface: Interface, name: str) -> int:
    specs = (interface.ids, interface.mask, interface.positions, interface.logits)
    found = next(spec for spec in specs if spec is not None and spec.name == name)
    kind: int = TensorProto.DataType.Value(found.dtype.upper())
    return kind


def _edge(
    model: onnx.ModelProto,
    mine: str,
    theirs: str,
    kind: int,
    before: list[onnx.NodeProto],
    after: list[onnx.NodeProto],
) -> None:
    """One input or output under its new name and type."""
    ends = [(value, True) for value in model.graph.input] + [(value, False) for value in model.graph.output]
    value, is_input = next((value, is_input) for value, is_input in ends if value.name == mine)
    inner = f"{mine}.inside"
    _rename(model, mine, inner)
    own = value.type.tensor_type.elem_type
    integers = (TensorProto.INT64, TensorProto.INT32)
    if (kind in integers) != (own in integers):
        kind = own  # a mask of floats is added to scores, which this one is not
    value.name = theirs
    value.type.tensor_type.elem_type = kind
    if is_input:
        before.append(helper.make_node("Cast", [theirs], [inner], to=own))
    else:
        after.append(helper.make_node("Cast", [inner], [theirs], to=kind))


def _rename(model: onnx.ModelProto, old: str, new: str) -> None:
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]


def _cache_edges(
    model: onnx.ModelProto,
    own: Interface,
    pair: CachePair,
    before: list[onnx.NodeProto],
    after: list[onnx.NodeProto],
) -> None:
    """The old past and present of a layer and side around the new ones: names, type, order of axes, stacked or not."""
    mine = [p for p in own.caches if p.layer == pair.layer and (pair.side == "both" or p.side == pair.side)]
    order = _order(pair) or _STANDARD
    for end in ("past", "present"):
        theirs = getattr(pair, end)
        values = model.graph.input if end == "past" else model.graph.output
        kind = TensorProto.DataType.Value(theirs.dtype.upper())
        inner = []
        for one in mine:
            name = getattr(one, end).name
            value = next(v for v in values if v.name == name)
            inner.append(f"{name}.inside")
            _rename(model, name, inner[-1])
            dims = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            values.remove(value)
        shape: list[str | int] = [dims[_STANDARD.index(axis)] for axis in order]
        if pair.side == "both":
            shape.insert(pair.axes.index("stack"), 2)
        values.append(helper.make_tensor_value_info(theirs.name, kind, shape))
        if end == "past":
            before += _inwards(model, theirs.name, inner, pair, order)
        else:
            after += _outwards(model, theirs.name, inner, pair, order, kind)


def _inwards(
    model: onnx.ModelProto, name: str, inner: Sequence[str], pair: CachePair, order: Sequence[Axis]
) -> list[onnx.NodeProto]:
    nodes = [helper.make_node("Cast", [name], [f"{name}.cast"], to=TensorProto.FLOAT)]
    perm = [order.index(axis) for axis in _STANDARD]
    for side, result in enumerate(inner):
        source = f"{name}.cast"
        if pair.side == "both":
            index = _constant(model, f"adapt.side.{side}", np.array(side))
            nodes.append(helper.make_node("Gather", [source, index], [f"{result}.side"], axis=pair.axes.index("stack")))
            source = f"{result}.side"
        nodes.append(helper.make_node("Transpose", [source], [result], perm=perm))
    return nodes


def _outwards(
    model: onnx.ModelProto, name: str, inner: Sequence[str], pair: CachePair, order: Sequence[Axis], kind: int
) -> list[onnx.NodeProto]:
    perm = [_STANDARD.index(axis) for axis in order]
    nodes = [helper.make_node("Transpose", [one], [f"{one}.out"], perm=perm) for one in inner]
    joined = f"{inner[0]}.out"
    if pair.side == "both":
        stack = pair.axes.index("stack")
        axis = _constant(model, "adapt.stack", np.array([stack]))
        nodes += [helper.make_node("Unsqueeze", [f"{one}.out", axis], [f"{one}.raised"]) for one in inner]
        joined = f"{name}.stacked"
        nodes.append(helper.make_node("Concat", [f"{one}.raised" for one in inner], [joined], axis=stack))
    nodes.append(helper.make_node("Cast", [joined], [name], to=kind))
    return nodes


def _constant(model: onnx.ModelProto, name: str, value: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> str:
    if all(tensor.name != name for tensor in model.graph.initializer):
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.int64), name))
    return name


def _order_ends(model: onnx.ModelProto, interface: Interface) -> None:
    """Inputs and outputs in the order that a cache has: by layer, keys before values."""
    order = {p.past.name: i for i, p in enumerate(interface.caches) if p.past is not None}
    order |= {p.present.name: i for i, p in enumerate(interface.caches) if p.present is not None}
    for values in (model.graph.input, model.graph.output):
        ordered = sorted(values, key=lambda value: order.get(value.name, -1))
        copies = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in ordered]
        del values[:]
        values.extend(copies)

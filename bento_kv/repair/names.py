"""Names and pairs: which present continues which past, told by running, and the names that loops expect."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from bento_kv.contract.graph_io import TensorSpec
from bento_kv.errors import BentoKVError, first_line
from bento_kv.onnx_file import declared_inputs, declared_outputs, nested_graphs
from bento_kv.repair.files import write
from bento_kv.repair.records import Change
from bento_kv.runtime.interface import CachePair, Interface, recognize
from bento_kv.runtime.session import open_session

_PROBE = 4  # size of an axis that may be any


def interface_of(model: onnx.ModelProto) -> Interface:
    """The roles of a graph's inputs and outputs, as it declares them.

    Raises:
        DecoderError: it is not a causal decoder's graph.
    """
    return recognize(declared_inputs(model), declared_outputs(model))


def pair_up(model: onnx.ModelProto, file: Path) -> tuple[onnx.ModelProto, list[Change], list[Change]]:
    """Give each present the name that belongs to the past that it begins with.

    Args:
        model: as read.
        file: where to write what is run; its weights are there.
    """
    interface = interface_of(model)
    pairs = [pair for pair in interface.caches if pair.past is not None and "time" in pair.axes]
    outputs = [value.name for value in model.graph.output if value.name != interface.logits.name]
    if not pairs or not outputs or interface.packed:
        return model, [], []
    write(model, file)
    try:
        fed, results = _run(interface, pairs, outputs, file)
    except BentoKVError:
        return model, [], []  # why it does not run is found and said where its axes are restored
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
        return model, [], left
    return _swap(model, pairs, continues, left)


def _swap(
    model: onnx.ModelProto, pairs: list[CachePair], continues: Mapping[str, str], left: list[Change]
) -> tuple[onnx.ModelProto, list[Change], list[Change]]:
    """Exchange the names of presents that are each other's; a name of its own for one that had none to go by."""
    names: dict[str, str] = {}
    for pair in pairs:
        past, present = (spec.name if spec else "" for spec in (pair.past, pair.present))
        if past in continues and continues[past] != present:
            names[continues[past]] = present or f"present.{pair.layer}.{pair.side}"
    if not names:
        return model, [], left
    if set(names.values()) - set(names) & {value.name for value in model.graph.output}:
        return (
            model,
            [],
            [*left, Change("past-present-unpaired", next(iter(names)), "names of presents are taken twice")],
        )
    shown = ", ".join(f"{old} is now {new}" for old, new in list(names.items())[:4])
    change = Change(
        "past-present-unpaired",
        shown,
        f"{len(names)} presents carried the name of another layer or side; each begins with the past whose name it has "
        "now, which was seen by running it",
    )
    return renamed(model, names), [change], left


def _run(
    interface: Interface, pairs: list[CachePair], outputs: list[str], file: Path
) -> tuple[dict[str, NDArray[np.generic]], dict[str, NDArray[np.generic]]]:
    """One step on pasts of numbers that are all different; what went in and what came out."""
    session = open_session(file)
    rng = np.random.default_rng(0)
    sizes = {"rows": 1, "time": _PROBE}
    ids = _filled(interface.ids, [1, 1])
    fed: dict[str, NDArray[np.generic]] = {}
    for pair in pairs:
        if pair.past is not None:
            named = zip(pair.past.shape, pair.axes, strict=True)
            shape = [size if isinstance(size, int) else sizes.get(axis, _PROBE) for size, axis in named]
            dtype = np.float16 if pair.past.dtype == "float16" else np.float32
            fed[pair.past.name] = rng.standard_normal(shape).astype(dtype)
            ids = _filled(interface.ids, [shape[pair.axes.index("rows")] if "rows" in pair.axes else 1, 1])
            held = shape[pair.axes.index("time")]
    rows, tokens = ids.shape
    feeds: dict[str, NDArray[np.generic]] = {interface.ids.name: ids, **fed}
    if interface.mask is not None:
        feeds[interface.mask.name] = _filled(
            interface.mask, [rows, *[1] * (len(interface.mask.shape) - 2), held + tokens]
        )
    if interface.positions is not None:
        shape = [rows, tokens][-len(interface.positions.shape) :]
        feeds[interface.positions.name] = np.zeros(shape, _dtype(interface.positions))
    if interface.branch is not None:
        feeds[interface.branch.name] = np.ones([1] * len(interface.branch.shape), np.bool_)
    for spec in interface.zeros:
        feeds[spec.name] = np.zeros((rows, tokens), _dtype(spec))
    try:
        return fed, dict(zip(outputs, session.run(outputs, feeds), strict=True))
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise BentoKVError(first_line(error)) from error


def _filled(spec: TensorSpec, usual: list[int]) -> NDArray[np.generic]:
    """Ones, of the declared size where one is declared."""
    shape = [size if isinstance(size, int) else other for size, other in zip(spec.shape, usual, strict=True)]
    return np.ones(shape, _dtype(spec))


def _dtype(spec: TensorSpec) -> np.dtype[np.generic]:
    return np.dtype({"float": "float32", "double": "float64"}.get(spec.dtype, spec.dtype))


def _begins_with(present: NDArray[np.generic], past: NDArray[np.generic], pair: CachePair) -> bool:
    axis = pair.axes.index("time")
    if present.ndim != past.ndim or present.shape[axis] <= past.shape[axis]:
        return False
    head = np.take(present, range(past.shape[axis]), axis=axis).astype(np.float32)
    # A cache kept in half precision between ends of single precision is rounded on its way.
    return head.shape == past.shape and np.allclose(head, past.astype(np.float32), rtol=1e-2, atol=1e-2)


def _unpaired(pair: CachePair, found: list[str]) -> Change:
    name = pair.past.name if pair.past else ""
    several = f"{' and '.join(found)} both begin with it" if found else "no output begins with it"
    return Change(
        "past-present-unpaired" if pair.present is None else "present-not-appended",
        name,
        f"the present of {name} cannot be told: {several}. A new export is needed: give the model as --reference",
    )


def normalize(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[Change]]:
    """The names that most loops expect, where every past has its present and nothing is stacked."""
    interface = interface_of(model)
    names = {}
    if all(pair.past and pair.present and pair.side != "both" for pair in interface.caches):
        if [pair.layer for pair in interface.caches[::2]] != list(range(interface.layers)):
            return model, []
        for pair in interface.caches:
            if pair.past and pair.present:
                names[pair.past.name] = f"past_key_values.{pair.layer}.{pair.side}"
                names[pair.present.name] = f"present.{pair.layer}.{pair.side}"
    else:
        return model, []
    others = ((interface.ids, "input_ids"), (interface.mask, "attention_mask"), (interface.positions, "position_ids"))
    names.update({spec.name: name for spec, name in others if spec is not None})
    if interface.logits.shape[-1] in _vocabularies(model, interface):
        names[interface.logits.name] = "logits"  # and not, say, hidden states
    names = {old: new for old, new in names.items() if old != new}
    if not names:
        return model, []
    text = f"{len(names)} inputs and outputs have the names that most loops expect; a loop that feeds by the old names "
    shown = ", ".join(f"{old} is now {new}" for old, new in list(names.items())[:4])
    return renamed(model, names), [Change("names", shown, text + "has to use the new ones")]


def _vocabularies(model: onnx.ModelProto, interface: Interface) -> set[int]:
    """Rows of the tables that token ids are looked up in."""
    read = {interface.ids.name}
    for node in model.graph.node:
        if node.op_type in ("Cast", "Reshape") and node.input[0] in read:
            read.add(node.output[0])
    tables = {node.input[0] for node in model.graph.node if node.op_type == "Gather" and node.input[1] in read}
    return {tensor.dims[0] for tensor in model.graph.initializer if tensor.name in tables}


def cast_presents(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[Change]]:
    """Presents in the type of their pasts, so that they can be fed back as they are."""
    differing = {
        pair.present.name: pair.past.dtype
        for pair in interface_of(model).caches
        if pair.past and pair.present and pair.past.dtype != pair.present.dtype
    }
    if not differing:
        return model, []
    inner = {name: f"{name}.uncast" for name in differing}
    model = renamed(model, inner, declared=False)
    for value in model.graph.output:
        if value.name in differing:
            to = TensorProto.DataType.Value(differing[value.name].upper())
            model.graph.node.append(helper.make_node("Cast", [inner[value.name]], [value.name], to=to))
            value.type.tensor_type.elem_type = to
    first = next(iter(differing))
    more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
    return model, [Change("dtype-mismatch", first + more, f"cast to {differing[first]}, which its past takes")]


def renamed(model: onnx.ModelProto, names: Mapping[str, str], *, declared: bool = True) -> onnx.ModelProto:
    """Values under other names, which may be those of each other; what else has such a name makes way.

    Args:
        model: stays as it is.
        names: new ones by old ones.
        declared: inputs and outputs are renamed too, and not only what nodes read and write.
    """
    model = copy.deepcopy(model)
    every = {
        name for graph in nested_graphs(model.graph) for node in graph.node for name in [*node.input, *node.output]
    }
    every |= {tensor.name for graph in nested_graphs(model.graph) for tensor in graph.initializer}
    clashes = {new: f"{new}.inner" for new in names.values() if new in every and new not in names} if declared else {}
    names = {**clashes, **names}
    for graph in nested_graphs(model.graph):
        for node in graph.node:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]
        for tensor in graph.initializer:
            tensor.name = names.get(tensor.name, tensor.name)
        ends = [*graph.input, *graph.output] if declared or graph is not model.graph else []
        for value in [*ends, *graph.value_info]:
            value.name = names.get(value.name, value.name)
    return model

"""Layouts of decoder graphs that are found in the wild, made from the common one by surgery.

The common one is what `export_growing` writes: `past_key_values.N.key/value [batch, heads, past, head_dim]` in,
`present.N.*` out. Each function takes a model and returns another; its argument stays as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

Dims = list[int | str]


def cache_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Pasts in the order of the graph: key, value, key, value, ..."""
    return [value for value in model.graph.input if len(dims(value)) == 4]


def cache_outputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Presents in the order of the graph."""
    return list(model.graph.output)[1:]


def dims(value: onnx.ValueInfoProto) -> Dims:
    """Declared sizes; a symbolic one is its name."""
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def as_stacked(model: onnx.ModelProto, past: str = "past_{}", present: str = "present_{}") -> onnx.ModelProto:
    """One tensor a layer and direction, keys and values stacked: `[2, batch, heads, time, dim]` (gpt2 of old exporters)."""
    model = copy.deepcopy(model)
    pasts, presents = cache_inputs(model), cache_outputs(model)
    axis = _constant(model, "stack.axis", np.array([0]))
    indices = [_constant(model, f"stack.{side}", np.array(side)) for side in (0, 1)]
    before, after = [], []
    for layer in range(len(pasts) // 2):
        whole = past.format(layer)
        for side, value in enumerate(pasts[2 * layer : 2 * layer + 2]):
            before.append(helper.make_node("Gather", [whole, indices[side]], [value.name], axis=0))
        model.graph.input.remove(pasts[2 * layer + 1])
        _redeclare(pasts[2 * layer], whole, [2, *dims(pasts[2 * layer])])
        sides = presents[2 * layer : 2 * layer + 2]
        raised = [f"{value.name}.raised" for value in sides]
        after += [helper.make_node("Unsqueeze", [v.name, axis], [r]) for v, r in zip(sides, raised, strict=True)]
        after.append(helper.make_node("Concat", raised, [present.format(layer)], axis=0))
        model.graph.output.remove(sides[1])
        _redeclare(sides[0], present.format(layer), [2, *dims(sides[0])])
    return _around(model, before, after)


def as_transposed_keys(model: onnx.ModelProto) -> onnx.ModelProto:
    """Keys as `[batch, heads, dim, time]` (old bloom)."""
    return _permuted(model, (0, 1, 3, 2), lambda index: index % 2 == 0)


def as_time_major(model: onnx.ModelProto) -> onnx.ModelProto:
    """Keys and values as `[batch, time, heads, dim]`."""
    return _permuted(model, (0, 2, 1, 3), lambda index: True)


def as_two_files(model: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """`decoder_model.onnx`, which takes no past, and `decoder_with_past_model.onnx`."""
    return _without_past(model), copy.deepcopy(model)


def as_merged(model: onnx.ModelProto) -> onnx.ModelProto:
    """One file with both graphs as branches of an If that `use_cache_branch` decides."""
    first, later = (_prefixed(part, name) for part, name in zip(as_two_files(model), ("first.", "later."), strict=True))
    outputs = [value.name for value in model.graph.output]
    branches = []
    for part, prefix in ((later, "later."), (first, "first.")):
        results = [helper.make_empty_tensor_value_info(prefix + name) for name in outputs]
        for result, value in zip(results, model.graph.output, strict=True):
            result.type.tensor_type.elem_type = value.type.tensor_type.elem_type
        branches.append(helper.make_graph(list(part.graph.node), prefix[:-1], [], results))
    branch = helper.make_node("If", ["use_cache_branch"], outputs, then_branch=branches[0], else_branch=branches[1])
    flag = helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1])
    weights = {tensor.name: tensor for part in (later, first) for tensor in part.graph.initializer}
    merged = copy.deepcopy(model)
    merged.graph.ClearField("node")
    merged.graph.ClearField("initializer")
    merged.graph.ClearField("value_info")
    merged.graph.node.append(branch)
    merged.graph.initializer.extend(weights.values())
    merged.graph.input.append(flag)
    return merged


def as_uncached(model: onnx.ModelProto) -> onnx.ModelProto:
    """No cache in, no cache out."""
    model = _without_past(model)
    for value in cache_outputs(model):
        model.graph.output.remove(value)
    return model


def as_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights, cache and logits in half precision."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    converted: onnx.ModelProto = convert_float_to_float16(copy.deepcopy(model), keep_io_types=False)
    return converted


def as_int32_ids(model: onnx.ModelProto) -> onnx.ModelProto:
    """Token ids, mask and positions as int32."""
    model = copy.deepcopy(model)
    casts = []
    for value in model.graph.input:
        if value.type.tensor_type.elem_type == TensorProto.INT64:
            inner = f"{value.name}.int64"
            rename_uses(model.graph, {value.name: inner})
            casts.append(helper.make_node("Cast", [value.name], [inner], to=TensorProto.INT64))
            value.type.tensor_type.elem_type = TensorProto.INT32
    return _around(model, casts, [])


def as_fixed_axes(
    model: onnx.ModelProto, batch: int | None = None, sequence: int | None = None, past: int | None = None
) -> onnx.ModelProto:
    """The sizes given declared instead of their axes' names; what the graph computes is left alone."""
    model = copy.deepcopy(model)
    sizes = {"batch": batch, "sequence": sequence, "past": past}
    for value in [*model.graph.input, *model.graph.output]:
        for dim in value.type.tensor_type.shape.dim:
            parts = [sizes.get(part) for part in dim.dim_param.split(" + ")]
            if dim.dim_param and all(part is not None for part in parts):
                dim.dim_value = sum(part for part in parts if part is not None)
    return model


def with_names(
    model: onnx.ModelProto,
    past: str = "past_key_values.{layer}.{side}",
    present: str = "present.{layer}.{side}",
    sides: tuple[str, str] = ("key", "value"),
    **others: str,
) -> onnx.ModelProto:
    """Other names: of the cache by pattern, of the rest by name (`input_ids="tokens"`)."""
    names = dict(others)
    for pattern, values in ((past, cache_inputs(model)), (present, cache_outputs(model))):
        for index, value in enumerate(values):
            names[value.name] = pattern.format(layer=index // 2, side=sides[index % 2])
    return renamed(model, names)


def renamed(model: onnx.ModelProto, names: Mapping[str, str]) -> onnx.ModelProto:
    """Values of the main graph under other names, which may be those of each other."""
    model = copy.deepcopy(model)
    rename_uses(model.graph, names)
    for node in model.graph.node:
        for index, name in enumerate(node.output):
            node.output[index] = names.get(name, name)
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        value.name = names.get(value.name, value.name)
    return model


def save(model: onnx.ModelProto, file: Path) -> Path:
    """In one file."""
    onnx.save(model, file)
    return file


def save_with_external_data(model: onnx.ModelProto, file: Path, location: str | None = None) -> Path:
    """The weights in a file beside, `<file>.data` unless named otherwise."""
    onnx.save(
        copy.deepcopy(model),
        file,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=location or f"{file.name}.data",
        size_threshold=256,  # shapes stay inside, where shape inference reads them
    )
    return file


def as_traced_at(model: onnx.ModelProto, axes: Iterable[str], **sizes: int) -> onnx.ModelProto:
    """As a tracer bakes sizes: what is computed from the sizes of `axes` alone becomes constants.

    Args:
        model: in the common layout.
        axes: of `batch`, `sequence`, `past`; those that the tracer took for constants. Declared names stay.
        sizes: of all three, at which the tracer ran.
    """
    from onnxscript import optimizer

    model = copy.deepcopy(model)
    shapes = [node for node in model.graph.node if node.op_type == "Shape"]
    at = _shapes(model, shapes, sizes)
    others = [_shapes(model, shapes, {**sizes, name: sizes[name] + 3}) for name in sizes if name not in set(axes)]
    for node in shapes:
        name = node.output[0]
        free = (
            np.any([other[name] != at[name] for other in others], axis=0) if others else np.zeros(at[name].shape, bool)
        )
        _bake(model, node, at[name], free)
    folded: onnx.ModelProto = optimizer.optimize(model, onnx_shape_inference=False)
    return folded


def _shapes(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """What the Shape nodes give at these sizes."""
    probe = copy.deepcopy(model)
    names = [node.output[0] for node in nodes]
    probe.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.INT64, None) for name in names)
    session = ort.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, feeds(model, sizes)), strict=True))


def feeds(model: onnx.ModelProto, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Ones for every input, at these sizes of `batch`, `sequence` and `past`."""
    return {
        value.name: np.ones(
            [_size(dim, sizes) for dim in dims(value)],
            helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type),
        )
        for value in model.graph.input
    }


def _size(dim: int | str, sizes: Mapping[str, int]) -> int:
    return dim if isinstance(dim, int) else sum(sizes[part] for part in dim.split(" + "))


def _bake(model: onnx.ModelProto, node: onnx.NodeProto, value: np.ndarray, free: np.ndarray) -> None:
    """Put constants for the elements that are not free in place of a Shape node's result."""
    name = node.output[0]
    if free.all():
        return
    position = list(model.graph.node).index(node)
    if not free.any():
        model.graph.node.remove(node)
        model.graph.initializer.append(numpy_helper.from_array(value, name))
        return
    node.output[0] = f"{name}.free"
    parts = []
    for index in range(len(value)):
        if free[index]:
            at = _constant(model, f"{name}.index.{index}", np.array([index]))
            parts.append(f"{name}.{index}")
            position += 1
            model.graph.node.insert(position, helper.make_node("Gather", [node.output[0], at], [parts[-1]], axis=0))
        else:
            parts.append(_constant(model, f"{name}.baked.{index}", value[index : index + 1]))
    model.graph.node.insert(position + 1, helper.make_node("Concat", parts, [name], axis=0))


def _without_past(model: onnx.ModelProto) -> onnx.ModelProto:
    """The pasts are made inside, of length 0."""
    model = copy.deepcopy(model)
    before = [
        helper.make_node("Shape", ["input_ids"], ["empty.batch"], start=0, end=1),
    ]
    for value in cache_inputs(model):
        _, heads, _, dim = dims(value)
        sizes = [_constant(model, f"{value.name}.{n}", np.array([n])) for n in (heads, 0, dim)]
        zero = numpy_helper.from_array(
            np.zeros(1, helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)), "value"
        )
        before.append(helper.make_node("Concat", ["empty.batch", *sizes], [f"{value.name}.shape"], axis=0))
        before.append(helper.make_node("ConstantOfShape", [f"{value.name}.shape"], [value.name], value=zero))
        model.graph.input.remove(value)
    for value in [*model.graph.input, *model.graph.output]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "past + sequence":
                dim.dim_param = "sequence"
    return _around(model, before, [])


def _permuted(model: onnx.ModelProto, order: Sequence[int], which: Callable[[int], bool]) -> onnx.ModelProto:
    """The order is its own inverse, so that it serves both ways."""
    model = copy.deepcopy(model)
    before, after, names = [], [], {}
    for values, nodes in ((cache_inputs(model), before), (cache_outputs(model), after)):
        for index, value in enumerate(values):
            if not which(index):
                continue
            inner = names[value.name] = f"{value.name}.common"
            ends = ([value.name], [inner]) if nodes is before else ([inner], [value.name])
            nodes.append(helper.make_node("Transpose", *ends, perm=list(order)))
            _redeclare(value, value.name, [dims(value)[axis] for axis in order])
    _rename_inner(model.graph, names)
    return _around(model, before, after)


def _prefixed(model: onnx.ModelProto, prefix: str) -> onnx.ModelProto:
    """All that nodes compute under other names; inputs and weights keep theirs."""
    model = copy.deepcopy(model)
    _rename_inner(model.graph, {name: prefix + name for node in model.graph.node for name in node.output if name})
    for index, node in enumerate(model.graph.node):
        node.name = f"{prefix}{node.name or index}"
    return model


def _rename_inner(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Rename what nodes read and write, and nothing that is declared."""
    rename_uses(graph, names)
    for node in graph.node:
        for index, name in enumerate(node.output):
            node.output[index] = names.get(name, name)


def rename_uses(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                rename_uses(attribute.g, names)


def _redeclare(value: onnx.ValueInfoProto, name: str, shape: Dims) -> None:
    value.CopyFrom(helper.make_tensor_value_info(name, value.type.tensor_type.elem_type, shape))


def _constant(model: onnx.ModelProto, name: str, value: np.ndarray) -> str:
    if all(tensor.name != name for tensor in model.graph.initializer):
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.int64), name))
    return name


def _around(
    model: onnx.ModelProto, before: Iterable[onnx.NodeProto], after: Iterable[onnx.NodeProto]
) -> onnx.ModelProto:
    """Nodes put before and behind all others."""
    nodes = [*before, *model.graph.node, *after]
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    return model

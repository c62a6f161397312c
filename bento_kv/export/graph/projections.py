"""Linear layers: those that read the same values become one, and what only moves their outputs moves their weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from bento_kv.contract.operators import GROUP_QUERY_ATTENTION, AttentionInput
from bento_kv.export.graph.nodes import array_of, attribute, constant, only_user, producer, stand_in
from bento_kv.export.graph.origins import Origins

# Nodes that put elements elsewhere and compute nothing.
_MOVES = frozenset({"Reshape", "Transpose", "Split", "Slice", "Concat", "Unsqueeze", "Squeeze", "Identity"})


@dataclass(frozen=True, slots=True)
class Linear:
    """x @ weight + bias.

    Attributes:
        x: `[..., K]`.
        weight: `[K, N]`.
        bias: `[N]`, if it has one.
        output: `[..., N]`.
    """

    x: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    output: ir.Value

    @property
    def width(self) -> int:
        array = array_of(self.weight)
        assert array is not None
        return int(array.shape[1])


def linear(value: ir.Value) -> Linear | None:
    """The linear layer that makes the value, if one does."""
    add = producer(value, "Add")
    bias: ir.Value | None = None
    product: ir.Value | None = value
    if add is not None:
        for one, other in (add.inputs, reversed(add.inputs)):
            if other is not None and other.const_value is not None and len(other.const_value.shape) == 1:
                product, bias = one, other
    node = producer(product, "MatMul")
    if node is None or node.inputs[0] is None or node.inputs[1] is None:
        return None
    weight = node.inputs[1]
    if weight.const_value is None or len(weight.const_value.shape) != 2:
        return None
    return Linear(node.inputs[0], weight, bias, value)


def plain_products(model: ir.Model) -> int:
    """Gemm with constant weights as MatMul and Add, without the reshapes to two axes and back. Returns their number.

    All linear layers are of one form then, for the passes that follow.
    """
    count = 0
    for node in list(model.graph):
        if node.op_type != "Gemm" or [attribute(node, key, 1.0) for key in ("alpha", "beta")] != [1.0, 1.0]:
            continue
        weight = array_of(node.inputs[1])
        if weight is None or node.inputs[1] is None or attribute(node, "transA", 0):
            continue
        right = node.inputs[1]
        if attribute(node, "transB", 0):
            right = constant(model, f"{right.name}.transposed", weight.T)
        flatten, unflatten = producer(node.inputs[0], "Reshape"), only_user(node.outputs[0], "Reshape")
        x, replaced = node.inputs[0], node
        if flatten is not None and unflatten is not None and _batched(flatten.inputs[0], unflatten.outputs[0]):
            x, replaced = flatten.inputs[0], unflatten
        nodes = [ir.node("MatMul", [x, right], name=f"{node.name}/MatMul")]
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            nodes.append(ir.node("Add", [nodes[0].outputs[0], node.inputs[2]], name=f"{node.name}/Add"))
        stand_in(model, replaced, nodes, [(replaced.outputs[0], nodes[-1].outputs[0])])
        count += 1
    return count


def _batched(*values: ir.Value | None) -> bool:
    """Whether all are `[1, tokens, width]`."""
    return all(
        value is not None and value.shape is not None and len(value.shape) == 3 and value.shape[0] == 1
        for value in values
    )


def fold_transposes(model: ir.Model) -> int:
    """Transpose constant weights here, not at every load. Returns their number."""
    count = 0
    for node in list(model.graph):
        array = array_of(node.inputs[0]) if node.op_type == "Transpose" else None
        if array is None or array.ndim != 2:
            continue
        source = node.inputs[0]
        assert source is not None
        folded = constant(model, f"{source.name}.transposed", array.T)
        ir.convenience.replace_all_uses_with(node.outputs[0], folded)
        model.graph.remove(node, safe=True)
        count += 1
    return count


def pack_attention_inputs(model: ir.Model, origins: Origins) -> int:
    """One linear layer for queries, keys and values, its columns in the order that the attention operator wants.

    Between the linear layers and the operator, elements are only put elsewhere (split, sliced, transposed by heads,
    concatenated). Which column goes where is found by sending the columns' numbers through; then the weights are
    stored in that order, and nothing is left to be moved.

    Returns the number of layers.
    """
    count = 0
    for node in list(model.graph):
        if node.op_type != GROUP_QUERY_ATTENTION:
            continue
        gather = producer(node.inputs[AttentionInput.QUERY], "GatherND")
        if gather is None or gather.inputs[0] is None:
            continue
        packed = gather.inputs[0]  # [tokens, N]
        sources = [linear(value) for value in _sources(packed)]
        linears = [source for source in sources if source is not None]
        if not linears or len(linears) < len(sources) or len({each.x for each in linears}) > 1:
            continue
        order = _order(model, packed, linears)
        if order is None:
            continue
        merged = _merge(model, linears, order, f"layers.{count}.attention.qkv", origins)
        squeeze = ir.node("Squeeze", [merged[-1].outputs[0], _axis_zero(model)], name=f"layers.{count}/Squeeze")
        stand_in(model, gather, [*merged, squeeze], [])
        gather.replace_input_with(0, squeeze.outputs[0])
        count += 1
    return count


def _axis_zero(model: ir.Model) -> ir.Value:
    name = "axis_zero"
    return model.graph.initializers.get(name) or constant(model, name, np.array([0], np.int64))


def _sources(value: ir.Value) -> list[ir.Value]:
    """The values whose elements a value consists of, in the order in which they are met."""
    pending, found = [value], dict[ir.Value, None]()
    while pending:
        current = pending.pop()
        node = producer(current, *_MOVES)
        if node is None:
            found[current] = None
            continue
        # Only the first input is data, but of a concatenation all are.
        inputs = node.inputs if node.op_type == "Concat" else node.inputs[:1]
        pending.extend(reversed([each for each in inputs if each is not None and each.const_value is None]))
    return list(found)


def _order(model: ir.Model, packed: ir.Value, linears: list[Linear]) -> NDArray[np.int64] | None:
    """For each column of `packed`, which column of the linears laid side by side it is. None if tokens get mixed."""
    graph = ir.convenience.extract(model.graph, inputs=[each.output for each in linears], outputs=[packed])
    part = ir.Model(graph, ir_version=model.ir_version)
    graph.opset_imports.update(model.graph.opset_imports)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(ir.to_proto(part).SerializeToString(), options, providers=["CPUExecutionProvider"])
    widths = [each.width for each in linears]
    starts = np.cumsum([0, *widths])
    total, tokens = int(starts[-1]), 3
    numbers = np.arange(tokens)[:, None] * total
    feeds = {
        str(each.output.name): (numbers + np.arange(start, start + width)).astype(np.float32)[None]
        for each, start, width in zip(linears, starts, widths, strict=False)
    }
    result = np.rint(session.run(None, feeds)[0]).astype(np.int64)
    own = result - numbers
    if result.shape[0] != tokens or not (own == own[0]).all() or not ((own >= 0) & (own < total)).all():
        return None
    order: NDArray[np.int64] = own[0]
    return order


def _merge(
    model: ir.Model, linears: list[Linear], order: NDArray[np.int64], name: str, origins: Origins
) -> list[ir.Node]:
    """The nodes of one linear layer in place of several, its columns in that order; the last one's output is its."""
    weights = [_array(each.weight) for each in linears]
    weight = constant(model, f"{name}.weight", np.concatenate(weights, axis=1)[:, order])
    origins.merge(str(weight.name), weights, order)
    nodes = [ir.node("MatMul", [linears[0].x, weight], name=f"{name}/MatMul")]
    if any(each.bias is not None for each in linears):
        biases = np.concatenate(
            [np.zeros(each.width, np.float32) if each.bias is None else _array(each.bias) for each in linears]
        )
        bias = constant(model, f"{name}.bias", biases[order])
        nodes.append(ir.node("Add", [nodes[0].outputs[0], bias], name=f"{name}/Add"))
    return nodes


def _array(value: ir.Value) -> NDArray[np.float32]:
    array = array_of(value)
    assert array is not None
    return array

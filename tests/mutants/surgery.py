"""The knife: small changes of a graph in the common layout, found by structure and not by the names of inner values.

All functions change the model that they are given. Nodes may be added in any order: `tidy` sorts them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bento_kv.onnx_file import nested_graphs

Build = Callable[[str], str]


def constant(model: onnx.ModelProto, value: Any, dtype: Any = np.int64) -> str:
    """A weight with this value; its name."""
    name = _fresh(model, "constant")
    model.graph.initializer.append(numpy_helper.from_array(np.array(value, dtype), name))
    return name


def node(model: onnx.ModelProto, op: str, *inputs: str, **attributes: Any) -> str:
    """A new node; the name of what it computes."""
    name = _fresh(model, op.lower())
    domain = attributes.pop("domain", "")
    model.graph.node.append(helper.make_node(op, list(inputs), [name], name=name, domain=domain, **attributes))
    return name


def _fresh(model: onnx.ModelProto, stem: str) -> str:
    return f"fault.{stem}.{len(model.graph.node)}.{len(model.graph.initializer)}"


def rewire(
    model: onnx.ModelProto, name: str, build: Build, where: Callable[[onnx.NodeProto], bool] = lambda _: True
) -> None:
    """Nodes that read `name`, or those chosen, read what `build` makes of it."""
    nodes = [n for graph in nested_graphs(model.graph) for n in graph.node]
    places = [(n, i) for n in nodes for i, read in enumerate(n.input) if read == name and where(n)]
    assert places, f"nothing reads {name}"
    new = build(name)
    for reader, index in places:
        reader.input[index] = new


def returned(model: onnx.ModelProto, name: str, build: Build) -> None:
    """The output `name` is what `build` makes of it; inside, the graph goes on with what it had."""
    inner = f"{name}.inner"
    for other in model.graph.node:
        other.input[:] = [inner if read == name else read for read in other.input]
        other.output[:] = [inner if written == name else written for written in other.output]
    producer(model, build(inner)).output[0] = name


def producer(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if name in n.output)


def of_type(model: onnx.ModelProto, op: str) -> list[onnx.NodeProto]:
    found = [n for n in model.graph.node if n.op_type == op]
    assert found, f"no {op} in the graph"
    return found


def size(model: onnx.ModelProto, name: str, axis: int) -> str:
    """The size of an axis: `[1]`."""
    return node(model, "Shape", name, start=axis, end=axis + 1)


def scalar(model: onnx.ModelProto, name: str) -> str:
    return node(model, "Squeeze", name)


def positions_from_zero(model: onnx.ModelProto, shift: str | None = None) -> str:
    """Position ids made in the graph, `[1, sequence]`: 0, 1, ...; behind `shift` if there is one."""
    zero, one = constant(model, 0), constant(model, 1)
    counted = node(model, "Range", zero, scalar(model, size(model, "input_ids", 1)), one)
    if shift is not None:
        counted = node(model, "Add", counted, shift)
    return node(model, "Unsqueeze", counted, constant(model, [0]))


def past_length(model: onnx.ModelProto) -> str:
    """A scalar."""
    return scalar(model, size(model, "past_key_values.0.key", 2))


def joins(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes that join past and new keys or values: key, value, key, value, ... by layer."""
    names = [value.name for value in model.graph.output][1:]
    found = [producer(model, name) for name in names]
    assert all(join.op_type == "Concat" for join in found)
    return found


def causal(model: onnx.ModelProto) -> onnx.NodeProto:
    """The comparison of key indices with query indices."""
    return of_type(model, "LessOrEqual")[0]


def scores(model: onnx.ModelProto) -> list[str]:
    """What goes into each layer's softmax: `[batch, heads, sequence, past + sequence]`."""
    return [softmax.input[0] for softmax in of_type(model, "Softmax")]


def without_input(model: onnx.ModelProto, name: str) -> None:
    model.graph.input.remove(next(value for value in model.graph.input if value.name == name))


def without_outputs(model: onnx.ModelProto, names: Iterable[str]) -> None:
    for name in list(names):
        model.graph.output.remove(next(value for value in model.graph.output if value.name == name))


def declare(model: onnx.ModelProto, name: str, axis: int, dim: int | str) -> None:
    """Another declared size of an axis."""
    value = next(v for v in [*model.graph.input, *model.graph.output] if v.name == name)
    declared = value.type.tensor_type.shape.dim[axis]
    declared.Clear()
    if isinstance(dim, int):
        declared.dim_value = dim
    else:
        declared.dim_param = dim


def tidy(model: onnx.ModelProto) -> onnx.ModelProto:
    """The nodes in an order in which each reads what stands before it; what nobody reads is left out."""
    made = {name: n for n in model.graph.node for name in n.output if name}
    order: list[onnx.NodeProto] = []
    done: set[int] = set()

    def visit(current: onnx.NodeProto) -> None:
        if id(current) in done:
            return
        done.add(id(current))
        inside = [n for a in current.attribute if a.HasField("g") for g in nested_graphs(a.g) for n in g.node]
        for name in (name for n in (current, *inside) for name in n.input):
            if name in made:
                visit(made[name])
        order.append(current)

    for value in model.graph.output:
        visit(made[value.name])
    nodes = [copy_of(n) for n in order]
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    return model


def copy_of(original: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(original)
    return copy

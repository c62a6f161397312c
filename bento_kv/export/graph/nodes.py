"""Small questions and answers about a graph that the passes share."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

# What tells that a weight chooses experts, and how soon it follows.
_CHOICE = "TopK"
_HOPS = 4


def input_named(model: ir.Model, name: str) -> ir.Value:
    """The graph's input of that name."""
    return next(value for value in model.graph.inputs if value.name == name)


def input_at(node: ir.Node, place: int) -> ir.Value | None:
    """A node's input by its place, None if it is left out or the node has not so many."""
    return node.inputs[place] if place < len(node.inputs) else None


def constant(model: ir.Model, name: str, array: NDArray[Any]) -> ir.Value:
    """A new initializer."""
    value = ir.Value(name=name, const_value=ir.tensor(np.ascontiguousarray(array), name=name))
    value.shape = ir.Shape(array.shape)
    value.dtype = ir.DataType.from_numpy(array.dtype)
    model.graph.register_initializer(value)
    return value


def array_of(value: ir.Value | None) -> NDArray[Any] | None:
    """The value's content if it is constant."""
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()


def producer(value: ir.Value | None, *kinds: str) -> ir.Node | None:
    """The node that makes the value, if it is of one of these kinds."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type in kinds else None


def only_user(value: ir.Value, *kinds: str) -> ir.Node | None:
    """The one node that reads the value, if there is one only, of one of these kinds, and the value is no output."""
    users = {usage.node for usage in value.uses()}
    if len(users) != 1 or value.is_graph_output():
        return None
    (user,) = users
    return user if user.op_type in kinds else None


def stand_in(model: ir.Model, old: ir.Node, new: list[ir.Node], outputs: list[tuple[ir.Value, ir.Value]]) -> None:
    """Put new nodes before an old one and let their outputs be read instead of others; `(old value, new value)`."""
    model.graph.insert_before(old, new)
    for before, after in outputs:
        if before.dtype is not None:
            after.shape, after.dtype = before.shape, before.dtype
        if before.is_graph_output():
            before.name, after.name = f"{before.name}.before", before.name
        ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """An attribute's value, or what holds where it is not given."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def chooses(node: ir.Node) -> bool:
    """Whether a choice of the largest follows soon: the weight decides too much, then, for what it weighs."""
    frontier = [node]
    for _ in range(_HOPS):
        frontier = [usage.node for each in frontier for output in each.outputs for usage in output.uses()]
        if any(each.op_type == _CHOICE for each in frontier):
            return True
    return False

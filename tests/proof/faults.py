"""Faults of a graph that show only under a condition of the step, so that few checks can see them."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper


def constant(model: onnx.ModelProto, name: str, value: float, dtype: type[np.generic]) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.array(value, dtype), name))
    return name


def shape_of(model: onnx.ModelProto, tensor: str, axis: int) -> str:
    """A scalar: the size of an axis of a tensor."""
    shape, size = f"fault_shape_{tensor}", f"fault_size_{tensor}"
    index = constant(model, f"fault_axis_{tensor}", axis, np.int64)
    nodes = [helper.make_node("Shape", [tensor], [shape]), helper.make_node("Gather", [shape, index], [size])]
    _insert(model, nodes)
    return size


def largest(model: onnx.ModelProto, tensor: str) -> str:
    """A scalar: the largest value of a tensor of integers."""
    name, wide = f"fault_largest_{tensor}", f"fault_wide_{tensor}"
    cast = helper.make_node("Cast", [tensor], [wide], to=onnx.TensorProto.INT64)
    _insert(model, [cast, helper.make_node("ReduceMax", [wide], [name], keepdims=0)])
    return name


def compared(model: onnx.ModelProto, value: str, operator: str, number: int) -> str:
    """A condition: Equal, Greater or Less than a number."""
    name = f"fault_{value}_{operator}"
    other = constant(model, f"{name}_number", number, np.int64)
    _insert(model, [helper.make_node(operator, [value, other], [name])])
    return name


def both(model: onnx.ModelProto, one: str, other: str) -> str:
    _insert(model, [helper.make_node("And", [one, other], ["fault_both"])])
    return "fault_both"


def spoil_logits_if(model: onnx.ModelProto, condition: str) -> None:
    """The logits are one percent larger where the condition holds."""
    wrong = constant(model, "fault_factor", 1.01, np.float32)
    right = constant(model, "fault_one", 1.0, np.float32)
    for node in model.graph.node:
        node.output[:] = ["right_logits" if name == "logits" else name for name in node.output]
        node.input[:] = ["right_logits" if name == "logits" else name for name in node.input]
    model.graph.node.append(helper.make_node("Where", [condition, wrong, right], ["fault_scale"]))
    model.graph.node.append(helper.make_node("Mul", ["right_logits", "fault_scale"], ["logits"]))


def _insert(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    """Among the last nodes: what they read stands before them, and what reads them is appended."""
    model.graph.node.extend(nodes)

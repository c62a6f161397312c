"""What an ONNX file says of itself, read without running it and without its weights."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import TensorProto

from bento_kv.manifest import Precision, TensorSpec

_FOUR_BITS = {"MatMulNBits", "MatMulBnb4", "GatherBlockQuantized"}
_EIGHT_BITS = {"MatMulInteger", "DynamicQuantizeLinear", "QLinearMatMul", "QAttention", "DynamicQuantizeMatMul"}


def declared_inputs(model: onnx.ModelProto) -> list[TensorSpec]:
    """Inputs that have to be fed; old files list weights among them."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [spec(value) for value in model.graph.input if value.name not in weights]


def declared_outputs(model: onnx.ModelProto) -> list[TensorSpec]:
    """Outputs in the order of the graph."""
    return [spec(value) for value in model.graph.output]


def spec(value: onnx.ValueInfoProto) -> TensorSpec:
    """Name, element type and shape; an axis without a size and without a name is `?`."""
    tensor = value.type.tensor_type
    shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim)
    return TensorSpec(name=value.name, dtype=TensorProto.DataType.Name(tensor.elem_type).lower(), shape=shape)


def opsets(model: onnx.ModelProto) -> dict[str, int]:
    """Operator sets by domain; the standard one is `ai.onnx`."""
    return {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}


def nested_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and those inside its nodes, such as the branches of an If."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nested_graphs(attribute.g)


def precision(model: onnx.ModelProto) -> Precision:
    """Of the weights, and so of what rounding may do."""
    graphs = list(nested_graphs(model.graph))
    operators = {node.op_type for graph in graphs for node in graph.node}
    if operators & _FOUR_BITS:
        return "int4"
    if operators & _EIGHT_BITS:
        return "int8"
    types = [tensor.data_type for graph in graphs for tensor in graph.initializer]
    return "fp16" if types.count(TensorProto.FLOAT16) > types.count(TensorProto.FLOAT) else "fp32"

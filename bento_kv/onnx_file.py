"""What an ONNX file says of itself, read without running it and without its weights; and what the runtime takes of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from functools import cache

import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from bento_kv.contract.graph_io import TensorSpec
from bento_kv.contract.precision import Precision

_PASS_ON = {"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"}
_FAR = 100  # a runtime that takes anything would be asked for ever
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


def weight_count(model: onnx.ModelProto) -> int:
    """Numbers in the weights, several of few bits in a byte counted as one."""
    return sum(math.prod(tensor.dims) for graph in nested_graphs(model.graph) for tensor in graph.initializer)


def precision(model: onnx.ModelProto) -> Precision:
    """Of the weights, and so of what rounding may do."""
    graphs = list(nested_graphs(model.graph))
    operators = {node.op_type for graph in graphs for node in graph.node}
    if operators & _FOUR_BITS:
        return "int4"
    if operators & _EIGHT_BITS:
        return "int8"
    elements: Counter[int] = Counter()
    for tensor in (tensor for graph in graphs for tensor in graph.initializer):
        elements[tensor.data_type] += math.prod(tensor.dims)
    halves = elements[TensorProto.FLOAT16] + elements[TensorProto.BFLOAT16]
    return "fp16" if halves > elements[TensorProto.FLOAT] else "fp32"


def embedding_rows(model: onnx.ModelProto, ids: str) -> int | None:
    """Rows of the smallest table that token ids are looked up in, of the outer graph; None if it is not told.

    Logits may be wider than it: heads are padded to a round number, and ids beyond the table end a run.

    Args:
        ids: name of the input.
    """
    sizes = {tensor.name: tensor.dims[0] for tensor in model.graph.initializer if len(tensor.dims) > 1}
    names, rows = {ids}, []
    for node in model.graph.node:
        if node.op_type in _PASS_ON and node.input[0] in names:
            names.update(node.output)
        elif node.op_type.startswith("Gather") and node.input[1] in names and node.input[0] in sizes:
            rows.append(sizes[node.input[0]])
    return min(rows, default=None)


def element_types(model: onnx.ModelProto) -> set[str]:
    """Of weights, inputs, outputs, and of what is cast to within, in lower case."""
    graphs = list(nested_graphs(model.graph))
    values = [value for graph in graphs for value in (*graph.input, *graph.output, *graph.value_info)]
    found = {value.type.tensor_type.elem_type for value in values}
    found |= {tensor.data_type for graph in graphs for tensor in graph.initializer}
    nodes = (node for graph in graphs for node in graph.node)
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        if attribute.name == "to":
            found.add(attribute.i)
        elif attribute.type == onnx.AttributeProto.TENSOR:
            found.add(attribute.t.data_type)
    return {TensorProto.DataType.Name(number).lower() for number in found - {TensorProto.UNDEFINED}}


@cache
def highest_ir_version() -> int:
    """The newest ONNX IR version that the installed runtime loads; it has no call that tells (onnxruntime #14932)."""
    version = 3
    while version < _FAR and _loads(ir_version=version + 1, opset=13):
        version += 1
    return version


@cache
def highest_opset() -> int:
    """The newest ONNX opset that the installed runtime loads without complaint."""
    version = 13
    while version < _FAR and _loads(ir_version=8, opset=version + 1):
        version += 1
    return version


def _loads(*, ir_version: int, opset: int) -> bool:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", [x], [y])
    model = helper.make_model(graph, ir_version=ir_version, opset_imports=[helper.make_opsetid("", opset)])
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # noqa: BLE001 - onnxruntime's exceptions share no base class; any of them is the answer no
        return False
    return True

"""From what torch's exporter wrote to the growing interface: names, axes, order."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from bento_kv.contract.graph_io import (
    ATTENTION_MASK,
    BATCH,
    INPUT_IDS,
    PAST,
    PAST_AND_SEQUENCE,
    POSITION_IDS,
    SEQUENCE,
)
from bento_kv.errors import ExportError
from bento_kv.export.growing_check import IoNames

# What torch's exporter writes in bfloat16 without a kernel for it in the runtime's CPU provider.
_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div"})


def name_interface(
    graph: ir.Graph, names: IoNames, layers: int, *, positions: bool, mask: bool, model_type: str
) -> None:
    """Give inputs, outputs and their axes the names of the interface, and order the inputs as it does.

    Raises:
        ExportError: the tracer fixed an axis that has to vary.
    """
    past, present = names.caches(layers)
    own = {value.name: value for value in graph.inputs}
    plan = [(INPUT_IDS, names.input_ids, [BATCH, SEQUENCE])]
    if mask:
        plan.append((ATTENTION_MASK, names.attention_mask, [BATCH, PAST_AND_SEQUENCE]))
    if positions and own[POSITION_IDS].uses():
        plan.append((POSITION_IDS, names.position_ids, [BATCH, SEQUENCE]))
    for index, name in enumerate(past):
        plan.append((f"past.{index // 2}.{index % 2}", name, [BATCH, "", PAST]))
    ordered = [_declare(own[traced], name, axes, model_type) for traced, name, axes in plan]
    graph.inputs.clear()
    graph.inputs.extend(ordered)
    _declare(graph.outputs[0], names.logits, [BATCH, SEQUENCE], model_type)
    for value, name in zip(graph.outputs[1:], present, strict=True):
        _declare(value, name, [BATCH, "", PAST_AND_SEQUENCE], model_type)
    _clear_within(graph)


def _clear_within(graph: ir.Graph) -> None:
    """Take the tracer's names of axes from what lies within, and names that the interface now has."""
    ends = {*graph.inputs, *graph.outputs}
    taken = {value.name for value in ends}
    inner = [value for node in graph for value in node.outputs if value not in ends]
    for value in inner:
        value.shape = None
    for value in [*inner, *graph.initializers.values()]:
        if value.name in taken:
            value.name = f"inner.{value.name}"


def _declare(value: ir.Value, name: str, axes: Sequence[str], model_type: str) -> ir.Value:
    if value.shape is None:
        raise ExportError(f"{model_type}: the exporter gave no shape for {name}")
    for axis, symbol in enumerate(axes):
        if symbol and isinstance(value.shape[axis], int):
            raise ExportError(
                f"{model_type}: tracing fixed axis {axis} ({symbol}) of {name} at {value.shape[axis]}, so the graph would "
                "serve no other size; its code depends on that size"
            )
    sizes = [axes[axis] if axis < len(axes) and axes[axis] else dim for axis, dim in enumerate(value.shape)]
    value.shape = ir.Shape(sizes)
    value.name = name
    return value


def widen_bfloat16(graph: ir.Graph) -> None:
    """Arithmetic in bfloat16 as arithmetic in fp32 that is rounded after it, which is the same number."""
    for node in list(graph):
        if node.op_type not in _ARITHMETIC or node.outputs[0].dtype != ir.DataType.BFLOAT16:
            continue
        casts = [ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)}) for value in node.inputs]
        wide = ir.node(node.op_type, [cast.outputs[0] for cast in casts])
        narrow = ir.node("Cast", [wide.outputs[0]], {"to": int(ir.DataType.BFLOAT16)})
        graph.insert_before(node, [*casts, wide, narrow])
        narrow.outputs[0].dtype = ir.DataType.BFLOAT16
        ir.convenience.replace_all_uses_with(node.outputs[0], narrow.outputs[0])
        graph.remove(node, safe=True)

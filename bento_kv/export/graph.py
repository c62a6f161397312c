"""Passes over the traced graph: small, named, and none changes what is computed by more than the proof allows."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx_ir.passes import common

from bento_kv.errors import ExportError


def optimize(model: ir.Model, max_length: int) -> ir.Model:
    """All passes, in order; the model is changed in place and returned."""
    tabulate_rotary(model, max_length)
    clean_up(model)
    return model


def tabulate_rotary(model: ir.Model, max_length: int) -> None:
    """Replace cosines and sines of the positions by rows of tables, computed here once.

    The graph computes them anew in every layer; a table costs `max_length * head_dim` floats. And it is exact: a
    vectorized cosine gives other bits where an element falls into the loop's remainder, so that a token's rotation
    would depend on how many tokens share the step.
    """
    positions = next(value for value in model.graph.inputs if value.name == "position_ids")
    nodes = [node for node in model.graph if node.op_type in ("Cos", "Sin") and _depends_only_on(node, positions)]
    tables: dict[bytes, ir.Value] = {}
    for node in nodes:
        table = _evaluate(model, node.outputs[0], positions, max_length)
        key = table.tobytes() + str(table.shape).encode()
        if key not in tables:
            tables[key] = _lookup(model, table, positions, len(tables))
        ir.convenience.replace_all_uses_with(node.outputs[0], tables[key])


def _depends_only_on(node: ir.Node, positions: ir.Value) -> bool:
    """Whether the node's ancestors end in the positions and constants."""
    pending, seen, found = [node], set(), False
    while pending:
        current = pending.pop()
        for value in current.inputs:
            if value is positions:
                found = True
            elif value is None or value.const_value is not None or value in seen:
                continue
            elif (producer := value.producer()) is None:
                return False
            else:
                seen.add(value)
                pending.append(producer)
    return found


def _evaluate(model: ir.Model, value: ir.Value, positions: ir.Value, max_length: int) -> NDArray[np.float32]:
    """The value for positions 0 to max_length, one row a position: `[max_length, ...]`, axis of length 1 removed."""
    graph = ir.convenience.extract(model.graph, inputs=[positions], outputs=[value])
    part = ir.Model(graph, ir_version=model.ir_version)
    graph.opset_imports.update(model.graph.opset_imports)
    session = ort.InferenceSession(ir.to_proto(part).SerializeToString(), providers=["CPUExecutionProvider"])
    result: NDArray[np.float32] = session.run(None, {"position_ids": np.arange(max_length, dtype=np.int64)})[0]
    if result.ndim != 3 or result.shape[:2] != (1, max_length):
        raise ExportError(f"the rotary embedding has shape {list(result.shape)}, not [1, tokens, dimensions]")
    rows: NDArray[np.float32] = result[0]
    return rows


def _lookup(model: ir.Model, table: NDArray[np.float32], positions: ir.Value, number: int) -> ir.Value:
    """A node that takes the table's rows at the positions: `[1, tokens, dimensions]`."""
    name = f"rotary_table.{number}"
    stored = ir.Value(name=name, const_value=ir.tensor(table, name=name))
    stored.shape, stored.dtype = ir.Shape(table.shape), ir.DataType.FLOAT
    axes_name = f"{name}.axes"
    axes = ir.Value(name=axes_name, const_value=ir.tensor([0], dtype=ir.DataType.INT64, name=axes_name))
    axes.shape, axes.dtype = ir.Shape([1]), ir.DataType.INT64
    model.graph.register_initializer(stored)
    model.graph.register_initializer(axes)
    gather = ir.node("Gather", [stored, positions], {"axis": 0}, name=f"{name}/Gather")
    unsqueeze = ir.node("Unsqueeze", [gather.outputs[0], axes], name=f"{name}/Unsqueeze")
    model.graph.insert_before(model.graph[0], [gather, unsqueeze])
    return unsqueeze.outputs[0]


def clean_up(model: ir.Model) -> None:
    """Merge what is computed twice, drop what nobody reads and what only a debugger of the exporter would."""
    for step in (
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.ClearMetadataAndDocStringPass(),
    ):
        step(model)

"""Cosines and sines of the positions: computed here once, as tables."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from bento_kv.contract.graph_io import POSITION_IDS
from bento_kv.contract.operators import GROUP_QUERY_ATTENTION, AttentionInput
from bento_kv.errors import ExportError
from bento_kv.export.graph.nodes import constant, input_at, input_named


def rotate_in_attention(model: ir.Model, length: int) -> int:
    """Give the attention nodes that rotate their tables; traced were the rows of the tables at the step's positions.

    Args:
        model: changed in place.
        length: of the tables: the operator wants them as long as the cache's buffers.

    Returns the number of nodes.
    """
    positions = input_named(model, POSITION_IDS)
    tables: dict[bytes, ir.Value] = {}
    count = 0
    for node in model.graph:
        if node.op_type != GROUP_QUERY_ATTENTION or input_at(node, AttentionInput.COS_CACHE) is None:
            continue
        for place in (AttentionInput.COS_CACHE, AttentionInput.SIN_CACHE):
            rows = _evaluate(model, node.inputs[place], positions, length)
            node.replace_input_with(place, _table(model, "rotary", rows.reshape(length, -1), tables))
        count += 1
    return count


def tabulate_rotary(model: ir.Model, max_length: int) -> int:
    """Replace cosines and sines of the positions, where they stay in the graph, by rows of tables.

    The graph computes them anew in every layer; a table costs `max_length * head_dim` floats. And it is exact: a
    vectorized cosine gives other bits where an element falls into the loop's remainder, so that a token's rotation
    would depend on how many tokens share the step.

    Returns the number of nodes replaced.
    """
    positions = input_named(model, POSITION_IDS)
    nodes = [node for node in model.graph if node.op_type in ("Cos", "Sin") and _depends_only_on(node, positions)]
    tables: dict[bytes, ir.Value] = {}
    found: dict[ir.Value, ir.Value] = {}
    for node in nodes:
        rows = _evaluate(model, node.outputs[0], positions, max_length)
        if rows.ndim != 3 or rows.shape[:2] != (1, max_length):
            raise ExportError(f"the rotary embedding has shape {list(rows.shape)}, not [1, tokens, dimensions]")
        table = _table(model, "rotary_rows", rows[0], tables)
        if table not in found:
            found[table] = _lookup(model, table, positions)
        ir.convenience.replace_all_uses_with(node.outputs[0], found[table])
    return len(nodes)


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


def _evaluate(model: ir.Model, value: ir.Value | None, positions: ir.Value, length: int) -> NDArray[np.float32]:
    """The value at positions 0 to length."""
    assert value is not None
    graph = ir.convenience.extract(model.graph, inputs=[positions], outputs=[value])
    part = ir.Model(graph, ir_version=model.ir_version)
    graph.opset_imports.update(model.graph.opset_imports)
    session = ort.InferenceSession(ir.to_proto(part).SerializeToString(), providers=["CPUExecutionProvider"])
    result: NDArray[np.float32] = session.run(None, {POSITION_IDS: np.arange(length, dtype=np.int64)})[0]
    return result


def _table(model: ir.Model, name: str, rows: NDArray[np.float32], tables: dict[bytes, ir.Value]) -> ir.Value:
    """The initializer of a table, `[length, dimensions]`; equal ones are stored once."""
    key = rows.tobytes() + str(rows.shape).encode()
    if key not in tables:
        tables[key] = constant(model, f"{name}.{len(tables)}", rows)
    return tables[key]


def _lookup(model: ir.Model, table: ir.Value, positions: ir.Value) -> ir.Value:
    """A node that takes the table's rows at the positions: `[1, tokens, dimensions]`."""
    axes = constant(model, f"{table.name}.axes", np.array([0], np.int64))
    gather = ir.node("Gather", [table, positions], {"axis": 0}, name=f"{table.name}/Gather")
    unsqueeze = ir.node("Unsqueeze", [gather.outputs[0], axes], name=f"{table.name}/Unsqueeze")
    model.graph.insert_before(model.graph[0], [gather, unsqueeze])
    return unsqueeze.outputs[0]

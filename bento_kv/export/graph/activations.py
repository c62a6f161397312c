"""Activation functions that the runtime has as one operator."""

from __future__ import annotations

import onnx_ir as ir

from bento_kv.export.graph.nodes import producer, stand_in


def fuse_silu(model: ir.Model) -> int:
    """x * sigmoid(x) as one operator (com.microsoft QuickGelu, whose alpha is 1 here). Returns their number."""
    count = 0
    for node in list(model.graph):
        if node.op_type != "Mul":
            continue
        for x, gate in (node.inputs, tuple(reversed(node.inputs))):
            sigmoid = producer(gate, "Sigmoid")
            if x is None or sigmoid is None or sigmoid.inputs[0] is not x:
                continue
            silu = ir.Node("com.microsoft", "QuickGelu", [x], [ir.AttrFloat32("alpha", 1.0)], name=f"{node.name}.silu")
            stand_in(model, node, [silu], [(node.outputs[0], silu.outputs[0])])
            count += 1
            break
    if count:
        model.graph.opset_imports.setdefault("com.microsoft", 1)
    return count

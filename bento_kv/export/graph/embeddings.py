"""Tokens looked up in quantized tables: in the head's own weights, where they are tied."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bento_kv.export.graph.int8_activations import initializer, scalar
from bento_kv.export.graph.nodes import array_of, stand_in
from bento_kv.export.graph.weights import COLUMN_BITS, Quantization, Weights, lookups


def embed(model: ir.Model, weights: Weights, how: Quantization) -> None:
    """Look tokens up in the head's own weights, where they are tied."""
    if how.head_bits == COLUMN_BITS:
        _embed_from_columns(model, weights, how)
    else:
        _embed_from_blocks(model, weights, how)


def _embeddings(model: ir.Model, weights: Weights) -> list[tuple[ir.Node, str]]:
    """The nodes that look tokens up, with the weight that they look in: the head, where they are tied, or a table."""
    found = []
    for node in lookups(model):
        table, value = array_of(node.inputs[0]), node.inputs[0]
        assert table is not None
        assert value is not None
        if weights.is_head(table):
            found.append((node, str(weights.head)))
        elif value.name in weights.tables:
            found.append((node, str(value.name)))
    return found


def _embed_from_blocks(model: ir.Model, weights: Weights, how: Quantization) -> None:
    """Look tokens up in the head's blocks (com.microsoft GatherBlockQuantized), unless they do not fill their rows."""
    for node, name in _embeddings(model, weights):
        if name != weights.head:
            continue
        size = weights.block_size(name, how)
        if len(weights.floats[name]) % size:
            return
        arrays = weights.blocks(name, how.head_bits, how)
        packed = arrays[f"q{how.head_bits}"]
        inputs: list[ir.Value | None] = [
            # The same bytes as the head's, without its axis of blocks.
            initializer(model, f"{name}.rows", packed.reshape(len(packed), -1)),
            node.inputs[1],
            initializer(model, f"{name}.scales", arrays["scales"]),
        ]
        if "zero_points" in arrays:
            inputs.append(initializer(model, f"{name}.zero_points", arrays["zero_points"]))
        settings = {
            "bits": how.head_bits,
            "block_size": size,
            "gather_axis": 0,
            "quantize_axis": 1,
        }
        attributes = [ir.AttrInt64(key, value) for key, value in settings.items()]
        rows = ir.Node("com.microsoft", "GatherBlockQuantized", inputs, attributes, name=f"{name}/embedding")
        stand_in(model, node, [rows], [(node.outputs[0], rows.outputs[0])])


def _embed_from_columns(model: ir.Model, weights: Weights, how: Quantization) -> None:
    """Look tokens up in int8 weights, the head's where they are tied, and scale them."""
    for node, name in _embeddings(model, weights):
        if name in weights.tables:
            weights.origins[name] = weights.tables[name]
        arrays = weights.columns(name, how)
        values, scales = (initializer(model, f"{name}.{part}", array) for part, array in arrays.items())
        rows = ir.node("Gather", [values, node.inputs[1]], {"axis": 0}, name=f"{name}/rows")
        floats = ir.node("Cast", [rows.outputs[0]], {"to": ir.DataType.FLOAT}, name=f"{name}/floats")
        own = ir.node("Gather", [scales, node.inputs[1]], {"axis": 0}, name=f"{name}/row_scales")
        wide = ir.node(
            "Unsqueeze", [own.outputs[0], scalar(model, "last_axis", np.array([-1], np.int64))], name=f"{name}/wide"
        )
        scaled = ir.node("Mul", [floats.outputs[0], wide.outputs[0]], name=f"{name}/embedding")
        stand_in(model, node, [rows, floats, own, wide, scaled], [(node.outputs[0], scaled.outputs[0])])

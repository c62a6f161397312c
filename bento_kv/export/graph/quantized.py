"""Graphs with quantized weights: each float MatMul of constant weights is replaced, and nothing else changes.

Two kinds of arithmetic. *Blocks*: weights of 4 or 8 bits with a scale for each block of inputs (com.microsoft
MatMulNBits, int8 activations by block), which reads the fewest bytes for few tokens. *Columns*: int8 weights with a scale
for each output and uint8 activations with a scale for each token (MatMulInteger), which computes fastest for many. Both
give a token the same bits whatever tokens share the step: no scale is shared between tokens.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bento_kv.export.graph.embeddings import embed
from bento_kv.export.graph.int8_activations import Tokens, initializer, scalar
from bento_kv.export.graph.nodes import only_user, stand_in
from bento_kv.export.graph.weights import COLUMN_BITS, Quantization, Weights, products, weight_name

INT8_ACTIVATIONS = 4  # MatMulNBits' accuracy_level


def use_blocks(model: ir.Model, weights: Weights, how: Quantization) -> None:
    """Blocks for every weight; the head, and layers at the edges, as it is asked for."""
    tokens = Tokens(model)
    edges = weights.at_edges(how.edge_layers)
    for node in products(model):
        name = weight_name(node)
        if name == weights.head:
            _head(model, node, weights, how, tokens)
        elif name in edges:
            _column_matmul(model, node, weights, how, tokens)
        elif name in weights.floats:
            _block_matmul(model, node, weights, how, how.bits)
    embed(model, weights, how)


def use_columns(model: ir.Model, weights: Weights, how: Quantization) -> None:
    """Columns for every weight; the head as it is asked for, so that graphs of both kinds can share it."""
    tokens = Tokens(model)
    for node in products(model):
        name = weight_name(node)
        if name == weights.head:
            _head(model, node, weights, how, tokens)
        elif name in weights.floats:
            _column_matmul(model, node, weights, how, tokens)
    embed(model, weights, how)


def _head(model: ir.Model, node: ir.Node, weights: Weights, how: Quantization, tokens: Tokens) -> None:
    if how.head_bits == COLUMN_BITS:
        _column_matmul(model, node, weights, how, tokens)
    else:
        _block_matmul(model, node, weights, how, how.head_bits)


def _block_matmul(model: ir.Model, node: ir.Node, weights: Weights, how: Quantization, bits: int) -> None:
    name = weight_name(node)
    arrays = weights.blocks(name, bits, how)
    columns, outputs = weights.floats[name].shape
    inputs: list[ir.Value | None] = [node.inputs[0]]
    inputs += [initializer(model, f"{name}.{part}", array) for part, array in arrays.items()]
    replaced = node
    add = only_user(node.outputs[0], "Add")
    bias = None if add is None else next((v for v in add.inputs if v is not None and v.const_value is not None), None)
    if add is not None and bias is not None and bias.shape is not None and list(bias.shape) == [outputs]:
        inputs += [None] * (5 - len(inputs)) + [bias]
        replaced = add
    settings = {"K": columns, "N": outputs, "bits": bits, "block_size": weights.block_size(name, how)}
    attributes = [ir.AttrInt64(key, value) for key, value in settings.items()]
    attributes.append(ir.AttrInt64("accuracy_level", INT8_ACTIVATIONS))
    product = ir.Node("com.microsoft", "MatMulNBits", inputs, attributes, name=f"{name}/MatMulNBits")
    stand_in(model, replaced, [product], [(replaced.outputs[0], product.outputs[0])])


def _column_matmul(model: ir.Model, node: ir.Node, weights: Weights, how: Quantization, tokens: Tokens) -> None:
    name, x = weight_name(node), node.inputs[0]
    assert x is not None
    values, scales = tokens.quantized(x, node)
    arrays = weights.columns(name, how)
    weight, column_scales = (initializer(model, f"{name}.{part}", array) for part, array in arrays.items())
    # Stored by output, as an embedding needs it; the runtime turns it round once, when it loads the graph.
    turned = ir.node("Transpose", [weight], {"perm": [1, 0]}, name=f"{name}/Transpose")
    product = ir.Node(
        "com.microsoft",
        "MatMulIntegerToFloat",
        [
            values,
            turned.outputs[0],
            scalar(model, "one", np.float32(1)),
            column_scales,
            scalar(model, "zero", np.uint8(128)),
        ],
        name=f"{name}/MatMulInteger",
    )
    scaled = ir.node("Mul", [product.outputs[0], scales], name=f"{name}/scale")
    stand_in(model, node, [turned, product, scaled], [(node.outputs[0], scaled.outputs[0])])

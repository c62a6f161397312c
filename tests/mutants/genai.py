"""A decoder in the form that onnxruntime-genai's builder writes: GroupQueryAttention, which rotates and masks inside.

It takes no position ids: the operator finds each row's place from the attention mask, summed up into `seqlens_k`.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.mutants.surgery import constant, node, size

VOCAB, HIDDEN, HEADS, KV_HEADS, DIM, LAYERS, LENGTH = 300, 64, 4, 2, 16, 2, 64
_F, _I = TensorProto.FLOAT, TensorProto.INT64


def genai_like() -> onnx.ModelProto:
    """Two layers of random weights, `past_key_values.N.key/value [batch, 2, past, 16]`."""
    random = np.random.default_rng(0)
    nodes, weights = (
        _lengths(),
        [numpy_helper.from_array(np.array(v, np.int64), n) for n, v in (("one", [1]), ("at1", 1))],
    )

    def weight(name: str, *shape: int) -> str:
        array = random.normal(0, 0.12, shape).astype(np.float32)
        weights.append(numpy_helper.from_array(array, name))
        return name

    angles = np.arange(LENGTH)[:, None] / 10000 ** (np.arange(DIM // 2) / (DIM // 2))
    for name, table in (("cos_cache", np.cos(angles)), ("sin_cache", np.sin(angles))):
        weights.append(numpy_helper.from_array(table.astype(np.float32), name))
    weights.append(numpy_helper.from_array(np.ones(HIDDEN, np.float32), "norm"))
    nodes.append(helper.make_node("Gather", [weight("embed", VOCAB, HIDDEN), "input_ids"], ["hidden.0"]))
    for layer in range(LAYERS):
        nodes += _layer(layer, weight)
    nodes.append(_norm(f"hidden.{LAYERS}", "final"))
    nodes.append(helper.make_node("MatMul", ["final", weight("head", HIDDEN, VOCAB)], ["logits"]))
    graph = helper.make_graph(nodes, "decoder", _inputs(), _outputs(), weights)
    return helper.make_model(
        graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    )


def _lengths() -> list[onnx.NodeProto]:
    return [
        helper.make_node("ReduceSum", ["attention_mask", "one"], ["lengths"], keepdims=0),
        helper.make_node("Sub", ["lengths", "one"], ["last"]),
        helper.make_node("Cast", ["last"], ["seqlens_k"], to=TensorProto.INT32),
        helper.make_node("Shape", ["attention_mask"], ["mask_shape"]),
        helper.make_node("Gather", ["mask_shape", "at1"], ["total"]),
        helper.make_node("Cast", ["total"], ["total_sequence_length"], to=TensorProto.INT32),
    ]


def _layer(layer: int, weight: object) -> list[onnx.NodeProto]:
    assert callable(weight)
    at = f"{layer}"
    cache = [f"past_key_values.{at}.key", f"past_key_values.{at}.value"]
    packed = (HEADS + 2 * KV_HEADS) * DIM
    return [
        _norm(f"hidden.{at}", f"normed.{at}"),
        helper.make_node("MatMul", [f"normed.{at}", weight(f"qkv.{at}", HIDDEN, packed)], [f"packed.{at}"]),
        helper.make_node(
            "GroupQueryAttention",
            [f"packed.{at}", "", "", *cache, "seqlens_k", "total_sequence_length", "cos_cache", "sin_cache"],
            [f"attended.{at}", f"present.{at}.key", f"present.{at}.value"],
            domain="com.microsoft",
            num_heads=HEADS,
            kv_num_heads=KV_HEADS,
            do_rotary=1,
        ),
        helper.make_node("MatMul", [f"attended.{at}", weight(f"out.{at}", HEADS * DIM, HIDDEN)], [f"mixed.{at}"]),
        helper.make_node("Add", [f"hidden.{at}", f"mixed.{at}"], [f"middle.{at}"]),
        _norm(f"middle.{at}", f"middle_normed.{at}"),
        helper.make_node("MatMul", [f"middle_normed.{at}", weight(f"up.{at}", HIDDEN, 96)], [f"wide.{at}"]),
        helper.make_node("Tanh", [f"wide.{at}"], [f"bent.{at}"]),
        helper.make_node("MatMul", [f"bent.{at}", weight(f"down.{at}", 96, HIDDEN)], [f"back.{at}"]),
        helper.make_node("Add", [f"middle.{at}", f"back.{at}"], [f"hidden.{layer + 1}"]),
    ]


def _norm(name: str, result: str) -> onnx.NodeProto:
    return helper.make_node("SimplifiedLayerNormalization", [name, "norm"], [result], axis=-1, epsilon=1e-6)


def _inputs() -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info("input_ids", _I, ["batch", "sequence"]),
        helper.make_tensor_value_info("attention_mask", _I, ["batch", "past + sequence"]),
        *_caches("past_key_values", "past"),
    ]


def _outputs() -> list[onnx.ValueInfoProto]:
    logits = helper.make_tensor_value_info("logits", _F, ["batch", "sequence", VOCAB])
    return [logits, *_caches("present", "past + sequence")]


def _caches(prefix: str, time: str) -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info(f"{prefix}.{layer}.{side}", _F, ["batch", KV_HEADS, time, DIM])
        for layer in range(LAYERS)
        for side in ("key", "value")
    ]


# Faults that only this form can have.


def attention_mask_unread(model: onnx.ModelProto) -> None:
    """Every row is taken to be as long as the mask's columns, padding and all."""
    _computes(model, "lengths", "Expand", "total", _shape_of_rows(model))


def lengths_of_row_0(model: onnx.ModelProto) -> None:
    """Every row is taken to be as long as the first."""
    first = node(model, "Gather", "lengths.own", constant(model, [0]), axis=0)
    shape = _shape_of_rows(model)
    next(n for n in model.graph.node if "lengths" in n.output).output[0] = "lengths.own"
    model.graph.node.append(helper.make_node("Expand", [first, shape], ["lengths"]))


def lengths_of_new_tokens(model: onnx.ModelProto) -> None:
    """Rows are taken to be as long as their new tokens: the operator writes over the past."""
    tokens = node(model, "Squeeze", size(model, "input_ids", 1))
    _computes(model, "lengths", "Expand", tokens, _shape_of_rows(model))


def layers_fed_each_others_past(model: onnx.ModelProto) -> None:
    for n in model.graph.node:
        if n.op_type == "GroupQueryAttention":
            n.input[3:5] = [name.translate(str.maketrans("01", "10")) for name in n.input[3:5]]


def _shape_of_rows(model: onnx.ModelProto) -> str:
    return size(model, "input_ids", 0)


def _computes(model: onnx.ModelProto, name: str, op: str, *inputs: str) -> None:
    """The value `name` is computed otherwise."""
    old = next(n for n in model.graph.node if name in n.output)
    old.CopyFrom(helper.make_node(op, list(inputs), [name]))

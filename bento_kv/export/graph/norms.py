"""Normalizations: a residual addition and the normalization of its sum are one operator."""

from __future__ import annotations

import onnx_ir as ir

from bento_kv.export.graph.nodes import attribute, producer, stand_in

_SKIP = {"RMSNormalization": "SkipSimplifiedLayerNormalization", "LayerNormalization": "SkipLayerNormalization"}


def skip_norms(model: ir.Model) -> int:
    """Merge additions of two activations with the normalization behind them (com.microsoft). Returns the pairs."""
    count = 0
    for norm in list(model.graph):
        if norm.op_type not in _SKIP or attribute(norm, "axis", -1) not in (-1, 2):
            continue
        add = producer(norm.inputs[0], "Add")
        if add is None or not _same_shape(*add.inputs):
            continue
        scale = norm.inputs[1]
        if scale is None or scale.const_value is None or len(scale.const_value.shape) != 1:
            continue
        total = add.outputs[0]
        fused = ir.Node(
            "com.microsoft",
            _SKIP[norm.op_type],
            [*add.inputs, *norm.inputs[1:]],
            [ir.AttrFloat32("epsilon", attribute(norm, "epsilon", 1e-5))],
            num_outputs=4,
            name=f"{norm.name}.skip",
        )
        normed, mean, deviation, summed = fused.outputs
        mean.name = deviation.name = ""
        normed.name, summed.name = f"{norm.outputs[0].name}.skip", f"{total.name}.skip"
        stand_in(model, add, [fused], [(norm.outputs[0], normed), (total, summed)])
        count += 1
    if count:
        model.graph.opset_imports.setdefault("com.microsoft", 1)
    return count


def _same_shape(one: ir.Value | None, other: ir.Value | None) -> bool:
    """Whether two activations `[1, tokens, hidden]` have the same shape, neither of them being constant."""
    if one is None or other is None or one.const_value is not None or other.const_value is not None:
        return False
    return one.shape is not None and other.shape is not None and len(one.shape) == 3 and one.shape == other.shape

"""The element type of the KV cache."""

from __future__ import annotations

import onnx_ir as ir

from bento_kv.export.graph.nodes import constant
from bento_kv.export.kv_scales import Scales

# Inputs of GroupQueryAttention by position.
_PAST_KEY, _PAST_VALUE, _KEY_SCALE, _VALUE_SCALE = 3, 4, 12, 13


def quantize_cache(model: ir.Model, scales: Scales) -> None:
    """Keep keys and values as int8, with a scale for each channel of each head.

    The operator rounds a token's keys and values when it writes them and reads all of them, the new ones too, from the
    cache: so a token meets the same numbers however a sequence is cut into steps.

    Args:
        model: changed in place.
        scales: by layer, `[kv_heads, head_dim]` of keys and of values.
    """
    nodes = [node for node in model.graph if node.op_type == "GroupQueryAttention"]
    for node in nodes:
        past = node.inputs[_PAST_KEY]
        assert past is not None
        layer = int(str(past.name).split(".")[1])
        node.resize_inputs(max(len(node.inputs), _VALUE_SCALE + 1))
        for index, side, array in zip((_KEY_SCALE, _VALUE_SCALE), ("key", "value"), scales[layer], strict=True):
            name = f"cache_scales.{layer}.{side}"
            scale = model.graph.initializers.get(name) or constant(model, name, array[None, :, None, :])
            node.replace_input_with(index, scale)
        for kind in ("k_quant_type", "v_quant_type"):
            node.attributes.add(ir.AttrString(kind, "PER_CHANNEL"))
        node.attributes.add(ir.AttrInt64("kv_cache_bit_width", 8))
        for value in (node.inputs[_PAST_KEY], node.inputs[_PAST_VALUE], *node.outputs[1:3]):
            assert value is not None
            value.type = ir.TensorType(ir.DataType.INT8)

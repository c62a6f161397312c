"""The element type of the KV cache."""

from __future__ import annotations

import onnx_ir as ir

from bento_kv.contract.graph_io import SIDES, layer_of
from bento_kv.contract.operators import (
    GROUP_QUERY_ATTENTION,
    K_QUANT_TYPE,
    KV_CACHE_BIT_WIDTH,
    V_QUANT_TYPE,
    AttentionInput,
    AttentionOutput,
)
from bento_kv.export.graph.nodes import constant
from bento_kv.export.kv_scales import Scales


def quantize_cache(model: ir.Model, scales: Scales) -> None:
    """Keep keys and values as int8, with a scale for each channel of each head.

    The operator rounds a token's keys and values when it writes them and reads all of them, the new ones too, from the
    cache: so a token meets the same numbers however a sequence is cut into steps.

    Args:
        model: changed in place.
        scales: by layer, `[kv_heads, head_dim]` of keys and of values.
    """
    nodes = [node for node in model.graph if node.op_type == GROUP_QUERY_ATTENTION]
    for node in nodes:
        past = node.inputs[AttentionInput.PAST_KEY]
        assert past is not None
        layer = layer_of(str(past.name))
        assert layer is not None
        node.resize_inputs(max(len(node.inputs), AttentionInput.V_SCALE + 1))
        places = (AttentionInput.K_SCALE, AttentionInput.V_SCALE)
        for place, side, array in zip(places, SIDES, scales[layer], strict=True):
            name = f"cache_scales.{layer}.{side}"
            scale = model.graph.initializers.get(name) or constant(model, name, array[None, :, None, :])
            node.replace_input_with(place, scale)
        for kind in (K_QUANT_TYPE, V_QUANT_TYPE):
            node.attributes.add(ir.AttrString(kind, "PER_CHANNEL"))
        node.attributes.add(ir.AttrInt64(KV_CACHE_BIT_WIDTH, 8))
        for value in (
            *(node.inputs[place] for place in (AttentionInput.PAST_KEY, AttentionInput.PAST_VALUE)),
            *(node.outputs[place] for place in (AttentionOutput.PRESENT_KEY, AttentionOutput.PRESENT_VALUE)),
        ):
            assert value is not None
            value.type = ir.TensorType(ir.DataType.INT8)

"""onnxruntime's GroupQueryAttention: what stands where among its inputs, outputs and attributes.

Source: docs/ContribOperators.md of onnxruntime. A test holds the names against the schema of the installed runtime.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import TypeVar

MICROSOFT = "com.microsoft"  # domain of the operators that are onnxruntime's own
GROUP_QUERY_ATTENTION = "GroupQueryAttention"


class AttentionInput(IntEnum):
    """Places of the inputs; a member is, in lower case, what the operator's documentation calls the input."""

    QUERY = 0  # with the keys and values packed behind it, if there are none of their own
    KEY = 1
    VALUE = 2
    PAST_KEY = 3
    PAST_VALUE = 4
    SEQLENS_K = 5
    TOTAL_SEQUENCE_LENGTH = 6
    COS_CACHE = 7
    SIN_CACHE = 8
    POSITION_IDS = 9
    ATTENTION_BIAS = 10
    HEAD_SINK = 11
    K_SCALE = 12
    V_SCALE = 13
    Q_NORM_WEIGHT = 14
    K_NORM_WEIGHT = 15
    QUERY_SEQLENS = 16


class AttentionOutput(IntEnum):
    """Places of the outputs."""

    OUTPUT = 0
    PRESENT_KEY = 1
    PRESENT_VALUE = 2
    OUTPUT_QK = 3


# Attributes, those that more than one room asks for.
NUM_HEADS = "num_heads"
KV_NUM_HEADS = "kv_num_heads"
LOCAL_WINDOW_SIZE = "local_window_size"
# Of a cache that is not of floats.
K_QUANT_TYPE = "k_quant_type"
V_QUANT_TYPE = "v_quant_type"
KV_CACHE_BIT_WIDTH = "kv_cache_bit_width"
ATTRIBUTES = (NUM_HEADS, KV_NUM_HEADS, LOCAL_WINDOW_SIZE, K_QUANT_TYPE, V_QUANT_TYPE, KV_CACHE_BIT_WIDTH)

T = TypeVar("T")


def inputs_in_order(given: Mapping[AttentionInput, T]) -> list[T | None]:
    """The inputs in the operator's order, None where one is left out; those behind the last given are not there."""
    return [given.get(place) for place in AttentionInput if place <= max(given)]

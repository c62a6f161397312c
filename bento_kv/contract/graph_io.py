"""A decoder graph's inputs and outputs: their names, element types and axes, each written down here alone.

The in-place graph takes tokens packed into one sequence, indices that say which row each of them is of, and the cache,
which it writes where it stands. The growing graph, which nearly every loop written for ONNX decoders speaks to, takes rows
of tokens, a mask and a past, and returns the past with the new keys and values behind it. Both call the cache by the same
names. An axis with a name is symbolic, and has to stay so.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal, get_args

from bento_kv.contract.record import Record

Side = Literal["key", "value"]
SIDES: tuple[Side, ...] = get_args(Side)

INPUT_IDS = "input_ids"
POSITION_IDS = "position_ids"
ATTENTION_MASK = "attention_mask"  # of the growing graph: the in-place one has lengths instead
LOGITS = "logits"

# Of the in-place graph alone.
GATHER_INDEX = "gather_index"
SCATTER_INDEX = "scatter_index"
LOGITS_INDEX = "logits_index"
SEQLENS_K = "seqlens_k"
QUERY_SEQLENS = "query_seqlens"
TOTAL_SEQUENCE_LENGTH = "total_sequence_length"
# Of one that can take the query heads that share keys as queries of one head, where a step has one token a row: whether
# this step does, and what hides the newest key's copies.
GROUPED = "grouped"
GROUP_BIAS = "group_bias"

# Axes of the in-place graph.
TOKENS = "tokens"
ROWS = "rows"
WIDTH = "width"
LOGIT_ROWS = "logit_rows"
MAX_LENGTH = "max_length"

# Axes of the growing graph.
BATCH = "batch"
SEQUENCE = "sequence"
PAST = "past"
PAST_AND_SEQUENCE = "past + sequence"

_PAST = "past_key_values"
_PRESENT = "present"
_CACHE_NAME = re.compile(rf"({_PAST}|{_PRESENT})\.(?P<layer>\d+)\.({'|'.join(SIDES)})")


class TensorSpec(Record):
    """One graph input or output; a symbolic axis is a name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


# What every in-place graph takes besides the cache, in the order of the graph.
STEP_INPUTS: tuple[TensorSpec, ...] = (
    TensorSpec(name=INPUT_IDS, dtype="int64", shape=(TOKENS,)),
    TensorSpec(name=POSITION_IDS, dtype="int64", shape=(TOKENS,)),
    TensorSpec(name=GATHER_INDEX, dtype="int64", shape=(ROWS, WIDTH)),  # the token of each cell
    TensorSpec(name=SCATTER_INDEX, dtype="int64", shape=(TOKENS,)),  # the cell of each token
    TensorSpec(name=LOGITS_INDEX, dtype="int64", shape=(LOGIT_ROWS,)),  # the tokens whose logits are wanted
    TensorSpec(name=SEQLENS_K, dtype="int32", shape=(ROWS,)),  # length of each row after the step, minus 1
    TensorSpec(name=QUERY_SEQLENS, dtype="int32", shape=(ROWS,)),  # tokens of each row in this step
    TensorSpec(name=TOTAL_SEQUENCE_LENGTH, dtype="int32", shape=()),  # an upper bound of the lengths
)
# The names by which an in-place graph is told from a growing one.
PACKED_NAMES = frozenset({GATHER_INDEX, SCATTER_INDEX, QUERY_SEQLENS, SEQLENS_K})


def group_inputs(group: int) -> tuple[TensorSpec, ...]:
    """What a graph takes besides that can take `group` query heads as queries of one head; nothing if there is one."""
    if group == 1:
        return ()
    return (
        TensorSpec(name=GROUPED, dtype="bool", shape=()),
        TensorSpec(name=GROUP_BIAS, dtype="float", shape=(ROWS, 1, group, MAX_LENGTH)),
    )


def logits_output(vocab_size: int) -> TensorSpec:
    """The in-place graph's logits."""
    return TensorSpec(name=LOGITS, dtype="float", shape=(LOGIT_ROWS, vocab_size))


def past_name(layer: int | str, side: str) -> str:
    """The input that a layer's keys, or values, are read from."""
    return f"{_PAST}.{layer}.{side}"


def present_name(layer: int | str, side: str) -> str:
    """The output that continues it."""
    return f"{_PRESENT}.{layer}.{side}"


def cache_names(name: Callable[[int, str], str], layers: int) -> list[str]:
    """`name` of all layers and sides, in the order of the graph: the keys of layer 0, its values, the keys of layer 1."""
    return [name(layer, side) for layer in range(layers) for side in SIDES]


def is_past(name: str) -> bool:
    """Whether an input is one of the cache's."""
    return name.startswith(f"{_PAST}.")


def layer_of(name: str) -> int | None:
    """The layer that an input or output of the cache is of; None for every other."""
    match = _CACHE_NAME.fullmatch(name)
    return None if match is None else int(match["layer"])

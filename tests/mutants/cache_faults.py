"""Faults of what happens to the past: how present is made of it, and what attention sees of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.mutants.surgery import (
    causal,
    constant,
    joins,
    node,
    past_length,
    positions_from_zero,
    returned,
    rewire,
    scalar,
    size,
    without_input,
)

Fault = Callable[[onnx.ModelProto], None]

# Present.


def new_only(model: onnx.ModelProto) -> None:
    """Present has the new positions without the past; attention sees both."""
    for join in joins(model):
        new, name = join.input[1], join.output[0]
        returned(model, name, lambda _, new=new: node(model, "Identity", new))  # type: ignore[misc]


def new_before_past(model: onnx.ModelProto) -> None:
    for join in joins(model):
        past, new = join.input
        returned(model, join.output[0], lambda _, past=past, new=new: node(model, "Concat", new, past, axis=2))  # type: ignore[misc]


def past_alone(model: onnx.ModelProto) -> None:
    for join in joins(model):
        past = join.input[0]
        returned(model, join.output[0], lambda _, past=past: node(model, "Identity", past))  # type: ignore[misc]


def new_zeroed_behind_past(model: onnx.ModelProto) -> None:
    """Behind a past, present has zeros for the new positions; attention sees the right ones."""
    empty = node(model, "Cast", node(model, "Equal", past_length(model), constant(model, 0)), to=TensorProto.FLOAT)
    for join in joins(model):
        past, new = join.input
        zeroed = node(model, "Concat", past, node(model, "Mul", new, empty), axis=2)
        returned(model, join.output[0], lambda _, zeroed=zeroed: zeroed)  # type: ignore[misc]


def rounded(model: onnx.ModelProto) -> None:
    """Present keeps eighths, as with a cache quantized too coarsely."""
    for join in joins(model):
        returned(model, join.output[0], lambda whole: _rounded(model, whole))


def _rounded(model: onnx.ModelProto, name: str) -> str:
    steps = constant(model, 8, np.float32)
    return node(model, "Div", node(model, "Round", node(model, "Mul", name, steps)), steps)


def values_zeroed(model: onnx.ModelProto) -> None:
    """Present values of the last layer are zeros of the right shape."""
    zero = constant(model, 0, np.float32)
    returned(model, joins(model)[-1].output[0], lambda whole: node(model, "Mul", whole, zero))


def first_position_lost(model: onnx.ModelProto) -> None:
    """As a window that slides by one too early: present loses its oldest position once there is a past."""
    start = node(model, "Cast", node(model, "Greater", past_length(model), constant(model, 0)), to=TensorProto.INT64)
    begin, end, axis = (
        node(model, "Unsqueeze", start, constant(model, [0])),
        constant(model, [1 << 40]),
        constant(model, [2]),
    )
    for join in joins(model):
        returned(model, join.output[0], lambda whole: node(model, "Slice", whole, begin, end, axis))


# What attention sees of the past.


def past_times_zero(*layers: int) -> Fault:
    def fault(model: onnx.ModelProto) -> None:
        for layer in layers:
            for join in joins(model)[2 * layer : 2 * layer + 2]:
                _attention_reads(model, join, lambda past: node(model, "Mul", past, constant(model, 0, np.float32)))

    return fault


def values_times_zero(model: onnx.ModelProto) -> None:
    """Past keys are attended to, and what they point at is zeros."""
    for join in joins(model)[1::2]:
        _attention_reads(model, join, lambda past: node(model, "Mul", past, constant(model, 0, np.float32)))


def keys_times_zero(model: onnx.ModelProto) -> None:
    """All of the past is attended to alike, whatever its keys."""
    for join in joins(model)[::2]:
        _attention_reads(model, join, lambda past: node(model, "Mul", past, constant(model, 0, np.float32)))


def _attention_reads(model: onnx.ModelProto, join: onnx.NodeProto, change: Callable[[str], str]) -> None:
    """Attention reads another past; present stays past and new."""
    past, new = join.input
    name, inner = join.output[0], f"{join.output[0]}.seen"
    for other in model.graph.node:
        other.input[:] = [inner if read == name else read for read in other.input]
    model.graph.node.append(helper.make_node("Concat", [change(past), new], [inner], axis=2))


def past_masked_but_last(model: onnx.ModelProto) -> None:
    """Only the last position of the past is seen, besides the new ones."""
    first = node(model, "Sub", past_length(model), constant(model, 1))
    comparison = causal(model)
    keys, allowed = comparison.input[0], comparison.output[0]
    recent = node(model, "GreaterOrEqual", keys, first)
    rewire(model, allowed, lambda name: node(model, "And", name, recent))


# Positions.


def positions_restart(model: onnx.ModelProto) -> None:
    """The input position_ids is there and not used: positions are counted from 0 in each step."""
    counted = positions_from_zero(model)
    rewire(model, "position_ids", lambda given: _still_read(model, given, _like_ids(model, counted)))


def positions_inside_restart(model: onnx.ModelProto) -> None:
    """There is no input for positions; they are counted from 0 in each step."""
    counted = _like_ids(model, positions_from_zero(model))
    rewire(model, "position_ids", lambda _: counted)
    without_input(model, "position_ids")


def positions_doubled(model: onnx.ModelProto) -> None:
    """The length of the past is added to position ids that have it already."""
    held = past_length(model)
    rewire(model, "position_ids", lambda given: node(model, "Add", given, held))


def positions_one_behind(model: onnx.ModelProto) -> None:
    """Behind a past, positions are one less than they should be."""
    back = node(model, "Cast", node(model, "Greater", past_length(model), constant(model, 0)), to=TensorProto.INT64)
    rewire(model, "position_ids", lambda given: node(model, "Sub", given, back))


def positions_count_padding(model: onnx.ModelProto, *, read: bool = True) -> None:
    """Positions follow from lengths, whatever the input position_ids says; or it is not even read."""
    counted = _like_ids(model, positions_from_zero(model, past_length(model)))
    rewire(model, "position_ids", lambda given: _still_read(model, given, counted) if read else counted)


def _like_ids(model: onnx.ModelProto, positions: str) -> str:
    return node(model, "Expand", positions, node(model, "Shape", "input_ids"))


def _still_read(model: onnx.ModelProto, given: str, used: str) -> str:
    """The input stays an input of the graph, to no effect."""
    return node(model, "Add", used, node(model, "Mul", given, constant(model, 0)))


# Masks.


def causal_not_shifted(model: onnx.ModelProto) -> None:
    """Query i sees keys 0 to i, whatever the past: the newest positions are hidden from it."""
    queries = causal(model).input[1]
    rewire(model, queries, lambda indices: node(model, "Sub", indices, past_length(model)))


def not_causal(model: onnx.ModelProto) -> None:
    """The causal mask was dropped: every token sees all of its step."""
    always = constant(model, True, np.bool_)
    rewire(model, causal(model).output[0], lambda allowed: node(model, "Or", allowed, always))


def not_causal_behind_a_past(model: onnx.ModelProto) -> None:
    """Behind a past the causal mask is left out, as is right for one token and wrong for a chunk."""
    open_ = node(model, "Greater", past_length(model), constant(model, 0))
    rewire(model, causal(model).output[0], lambda allowed: node(model, "Or", allowed, open_))


def padding_mask_ignored(model: onnx.ModelProto) -> None:
    """The input attention_mask is there, and its values are not used."""
    rewire(model, "attention_mask", lambda mask: node(model, "Expand", constant(model, 1), node(model, "Shape", mask)))


def padding_mask_of_new_only(model: onnx.ModelProto) -> None:
    """The attention mask is applied to the new positions only: what it hides of the past is seen."""

    def applied(mask: str) -> str:
        keys = node(model, "Range", constant(model, 0), scalar(model, size(model, mask, 1)), constant(model, 1))
        past = node(model, "Cast", node(model, "Less", keys, past_length(model)), to=TensorProto.INT64)
        return node(model, "Max", mask, past)

    rewire(model, "attention_mask", applied)


def past_hidden(model: onnx.ModelProto) -> None:
    """Only the new positions are seen."""
    comparison = causal(model)
    keys = comparison.input[0]
    new = node(model, "GreaterOrEqual", keys, past_length(model))
    rewire(model, comparison.output[0], lambda allowed: node(model, "And", allowed, new))


def mask_of_first_step(model: onnx.ModelProto) -> None:
    """Right at step 0 and at the first cached step; then the mask stands still at that length."""
    length = node(model, "Min", past_length(model), constant(model, 5))
    queries = causal(model).input[1]
    rewire(model, queries, lambda q: node(model, "Add", node(model, "Sub", q, past_length(model)), length))


def mask_of_row_0(model: onnx.ModelProto) -> None:
    """Every row is given the first row's mask."""
    rewire(
        model,
        "attention_mask",
        lambda mask: node(
            model, "Expand", node(model, "Gather", mask, constant(model, [0]), axis=0), node(model, "Shape", mask)
        ),
    )

"""Names of inputs and outputs: one spelling, and a way back."""

from __future__ import annotations

import inspect

import pytest

from bento_kv.contract.graph_io import (
    PACKED_NAMES,
    STEP_INPUTS,
    cache_names,
    group_inputs,
    is_past,
    layer_of,
    past_name,
    present_name,
)


def test_caches_are_named_by_layer_and_side_in_the_order_of_the_graph() -> None:
    assert cache_names(past_name, 2) == [
        "past_key_values.0.key",
        "past_key_values.0.value",
        "past_key_values.1.key",
        "past_key_values.1.value",
    ]
    assert cache_names(present_name, 1) == ["present.0.key", "present.0.value"]


@pytest.mark.parametrize("name", cache_names(past_name, 12) + cache_names(present_name, 12))
def test_a_name_of_the_cache_says_its_layer(name: str) -> None:
    assert layer_of(name) == int(name.split(".")[1])
    assert is_past(name) == name.startswith("past")


@pytest.mark.parametrize("name", [*(spec.name for spec in STEP_INPUTS), "logits", "present", "past_key_values.x.key"])
def test_other_names_have_no_layer(name: str) -> None:
    assert layer_of(name) is None


def test_a_graph_is_known_as_packed_by_inputs_that_every_packed_graph_has() -> None:
    assert {spec.name for spec in STEP_INPUTS} >= PACKED_NAMES


def test_grouping_takes_inputs_only_where_heads_share_keys() -> None:
    assert group_inputs(1) == ()
    assert [spec.shape for spec in group_inputs(4)] == [(), ("rows", 1, 4, "max_length")]


def test_the_traced_step_takes_the_inputs_in_their_order() -> None:
    tracing = pytest.importorskip("bento_kv.export.tracing")
    taken = list(inspect.signature(tracing.PackedDecoder.forward).parameters)
    assert taken == ["self", *(spec.name for spec in STEP_INPUTS), "past"]

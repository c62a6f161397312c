"""The operator's names are those of the installed runtime."""

from __future__ import annotations

import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

from bento_kv.contract import operators
from bento_kv.contract.operators import AttentionInput, AttentionOutput, inputs_in_order


@pytest.fixture(scope="module")
def schema():
    (found,) = (
        each
        for each in get_all_operator_schema()
        if (each.domain, each.name) == (operators.MICROSOFT, operators.GROUP_QUERY_ATTENTION)
    )
    return found


def test_inputs_stand_where_the_runtime_has_them(schema) -> None:
    assert [each.name.lower() for each in AttentionInput] == [each.name for each in schema.inputs]


def test_outputs_stand_where_the_runtime_has_them(schema) -> None:
    assert [each.name.lower() for each in AttentionOutput] == [each.name for each in schema.outputs]


def test_attributes_are_the_runtimes(schema) -> None:
    assert set(operators.ATTRIBUTES) <= set(schema.attributes)


def test_what_is_left_out_has_its_place() -> None:
    given = {AttentionInput.QUERY: "q", AttentionInput.PAST_KEY: "k"}
    assert inputs_in_order(given) == ["q", None, None, "k"]

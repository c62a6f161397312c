"""What a layer keeps, by its kind."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from bento_kv.contract.cache import KvSpec, cache_buffers


def test_buffers_are_those_of_the_graph_in_its_order() -> None:
    buffers = cache_buffers([KvSpec(kv_heads=2, head_dim=16), KvSpec(kv_heads=4, head_dim=8)])
    assert [buffer.before for buffer in buffers[:2]] == ["past_key_values.0.key", "past_key_values.0.value"]
    assert [buffer.shape(10) for buffer in buffers] == [(2, 10, 16)] * 2 + [(4, 10, 8)] * 2
    assert [buffer.token_elements for buffer in buffers] == [32] * 4


def test_past_and_present_are_declared_alike() -> None:
    before, after = cache_buffers([KvSpec(kv_heads=2, head_dim=16)])[1].tensors("int8")
    assert (before.name, after.name) == ("past_key_values.0.value", "present.0.value")
    assert before.shape == after.shape == ("rows", 2, "max_length", 16)
    assert before.dtype == after.dtype == "int8"


def test_a_kind_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValidationError, match="kind"):
        KvSpec.model_validate({"kind": "recurrent", "kv_heads": 2, "head_dim": 16})

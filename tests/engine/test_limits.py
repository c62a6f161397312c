from __future__ import annotations

import math
from typing import Any

import pytest

from bento_kv.engine.limits import RequestLimits
from bento_kv.engine.request import SamplingParams
from bento_kv.errors import ContextLengthError, RequestError

LIMITS = RequestLimits(vocab_size=10, max_length=8, max_tokens=None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.inf),
        ("temperature", math.nan),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("top_k", -1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.inf),
        ("presence_penalty", math.nan),
        ("frequency_penalty", -math.inf),
        ("logit_bias", {10: 1.0}),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {1: math.inf}),
        ("stop", ("a", "")),
        ("max_tokens", 0),
        ("logprobs", -1),
        ("speculation", -1),
        ("speculation", 1),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=name) as caught:
        LIMITS.check([1], SamplingParams(**{name: value}))
    assert caught.value.param == name


@pytest.mark.parametrize("prompt_ids", [[], [10], [3, -1, 3]])
def test_a_prompt_of_wrong_tokens_is_refused(prompt_ids: list[int]) -> None:
    with pytest.raises(RequestError) as caught:
        LIMITS.check(prompt_ids, SamplingParams())
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0, top_k=10**9, top_p=1e-9, min_p=1, repetition_penalty=1e-9, logprobs=0),
        SamplingParams(presence_penalty=-1e300, logit_bias={0: -1e300, 9: 100}, stop=("\n",), seed=-(2**200)),
    ],
)
def test_values_at_the_edge_are_taken(params: SamplingParams) -> None:
    assert LIMITS.check([0, 9], params) == 6


def test_speculation_may_be_less_than_what_the_engine_has() -> None:
    limits = RequestLimits(vocab_size=10, max_length=8, max_tokens=None, speculation=4)
    for asked in (None, 0, 1, 4):
        limits.check([1], SamplingParams(speculation=asked))
    with pytest.raises(RequestError, match="speculation is 5; it must be from 0 to 4"):
        limits.check([1], SamplingParams(speculation=5))
    with pytest.raises(RequestError, match="speculation is off here"):
        LIMITS.check([1], SamplingParams(speculation=1))
    LIMITS.check([1], SamplingParams(speculation=0))


def test_max_tokens_goes_to_the_end_of_the_context_unless_capped() -> None:
    assert LIMITS.check([1] * 7, SamplingParams()) == 1
    assert LIMITS.check([1, 1], SamplingParams(max_tokens=6)) == 6
    capped = RequestLimits(vocab_size=10, max_length=8, max_tokens=3)
    assert capped.check([1], SamplingParams()) == 3
    assert capped.check([1] * 6, SamplingParams()) == 2
    with pytest.raises(RequestError, match=r"4.*3") as caught:
        capped.check([1], SamplingParams(max_tokens=4))
    assert caught.value.param == "max_tokens"


def test_what_does_not_fit_in_the_context_is_refused_with_the_numbers() -> None:
    with pytest.raises(ContextLengthError, match=r"8.*8") as caught:
        LIMITS.check([1] * 8, SamplingParams())
    assert (caught.value.param, caught.value.code) == (None, "context_length_exceeded")
    with pytest.raises(ContextLengthError, match=r"5 .*4 .*9.*8.*3") as caught:
        LIMITS.check([1] * 5, SamplingParams(max_tokens=4))
    assert (caught.value.param, caught.value.code) == ("max_tokens", "context_length_exceeded")

"""A field's range and words stand once, and what derives from them agrees."""

from __future__ import annotations

import math

import pytest

from bento_kv.contract.settings import Bounds, Setting, expectation, named, settings
from bento_kv.engine.config import EngineConfig
from bento_kv.engine.deadlines import Deadlines
from bento_kv.engine.request import SamplingParams


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "words"),
    [
        (Bounds(), [-1e300, 0, 10**400], [math.nan, math.inf, -math.inf], "a finite number"),
        (Bounds(ge=0), [0, 0.0], [-0.1, math.nan, math.inf], "a finite number of at least 0"),
        (Bounds(gt=0), [1e-9], [0, math.nan], "a finite number above 0"),
        (Bounds(gt=0, le=1), [1e-9, 1], [0, 1.1], "a finite number above 0 and at most 1"),
        (Bounds(ge=0, le=2), [0, 2], [-1, 2.1], "a number between 0 and 2"),
    ],
)
def test_a_range_admits_what_it_says(bounds: Bounds, inside: list[float], outside: list[float], words: str) -> None:
    assert all(value in bounds for value in inside)
    assert not any(value in bounds for value in outside)
    assert expectation(float, bounds) == words


@pytest.mark.parametrize("record", [EngineConfig, SamplingParams, Deadlines])
def test_every_field_has_words_and_a_default_in_range(record: type) -> None:
    fields = settings(record)
    assert [field.name for field in fields] == list(record.__dataclass_fields__)  # type: ignore[attr-defined]
    for field in fields:
        assert field.words
        assert not field.words.endswith(".")
        assert field.admits(field.default)


def test_a_choice_is_listed() -> None:
    exact = named(EngineConfig, "exact")
    assert exact.choices == ("batch", "full")
    assert exact.expected == "'batch' or 'full'"
    assert not exact.admits("half")


def test_an_unset_value_is_in_range() -> None:
    assert Setting(name="n", type=int | None, default=None, words="a number", bounds=Bounds(ge=1)).admits(None)

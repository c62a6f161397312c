from __future__ import annotations

import math

import pytest

from bento_kv.engine.config import EngineConfig


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [
        ("slots", 0, 1),
        ("max_queue", -1, 0),
        ("prefill_tokens", 2, 3),
        ("prefill_chunk", 2, 3),
        ("priority_places", -1, 0),
        ("kv_tokens", 1, 2),
        ("prefix_cache_tokens", -1, 0),
    ],
)
def test_values_out_of_range_are_refused_with_the_name_and_the_least(name: str, value: int, least: int) -> None:
    EngineConfig(**{name: least})
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be an integer of at least {least}"):
        EngineConfig(**{name: value})


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="'batch' or 'full'"):
        EngineConfig(exact="half")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["max_queue_seconds", "max_seconds", "step_timeout"])
@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan])
def test_times_are_finite_and_above_0(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be a finite number of seconds above 0"):
        EngineConfig(**{name: value})

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from bento_kv.engine.request import SamplingParams
from bento_kv.engine.sampler import Sampler, uniform

ROW = np.asarray([1.0, 2.5, -0.5, 2.5, 0.0, 1.8, -3.0, 0.7], dtype=np.float32)


def textbook(row: NDArray[np.float32], params: SamplingParams) -> list[float]:
    """The distribution that the parameters describe, the slow way."""

    def normalised(weights: list[float]) -> list[float]:
        return [weight / sum(weights) for weight in weights]

    logits = [value + params.logit_bias.get(i, 0.0) for i, value in enumerate(row.tolist())]
    likely = normalised([math.exp(value / params.temperature) for value in logits])
    order = sorted(range(len(likely)), key=lambda i: (-likely[i], i))
    if params.top_k:
        kept = set(order[: params.top_k])
        likely = normalised([p if i in kept else 0.0 for i, p in enumerate(likely)])
    mass, nucleus = 0.0, set()
    for i in order:
        if mass < params.top_p:
            nucleus.add(i)
        mass += likely[i]
    likely = normalised([p if i in nucleus else 0.0 for i, p in enumerate(likely)])
    return normalised([p if p >= params.min_p * max(likely) else 0.0 for p in likely])


def chi_square_limit(degrees: int) -> float:
    """The value that chi-square exceeds once in 10,000 (Wilson and Hilferty, 1931)."""
    return degrees * (1 - 2 / (9 * degrees) + 3.719 * math.sqrt(2 / (9 * degrees))) ** 3


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=2.0),
        SamplingParams(top_k=3),
        SamplingParams(top_p=0.8, temperature=1.5),
        SamplingParams(min_p=0.1),
        SamplingParams(top_k=6, top_p=0.9, min_p=0.15, temperature=0.8, logit_bias={2: 3.0, 1: -100.0}),
    ],
    ids=["plain", "temperature", "top_k", "top_p", "min_p", "all"],
)
@pytest.mark.parametrize("way", ["over the tokens of one request", "over seeds"])
def test_tokens_are_distributed_as_the_textbook_says(params: SamplingParams, way: str) -> None:
    count = 4000
    expected = np.asarray(textbook(ROW, params)) * count
    observed = np.zeros(len(ROW))
    one = Sampler(replace(params, seed=7), ())
    for seed in range(count):
        sampler = one if way == "over the tokens of one request" else Sampler(replace(params, seed=seed), ())
        token_id = sampler.choose(ROW)
        sampler.record(token_id)
        observed[token_id] += 1
    possible = expected > 0
    assert observed[~possible].sum() == 0
    statistic = float(((observed - expected)[possible] ** 2 / expected[possible]).sum())
    assert statistic < chi_square_limit(int(possible.sum()) - 1)


def test_uniform_depends_on_seed_and_index_alone() -> None:
    numbers = {(seed, i): uniform(seed, i) for seed in (0, 1, -1, 2**64, 2**127) for i in range(50)}
    assert len(set(numbers.values())) == len(numbers)
    assert all(0 <= number < 1 for number in numbers.values())
    assert all(uniform(seed, i) == number for (seed, i), number in reversed(numbers.items()))


def test_uniform_is_the_same_on_every_machine() -> None:
    """A recorded seed must give the recorded output in years to come."""
    assert [uniform(42, i) for i in range(3)] == [0.8201981478608876, 0.36812845090913937, 0.8767979674463799]


def test_no_seed_is_a_new_seed_each_time() -> None:
    flat = np.zeros(10_000, dtype=np.float32)
    assert len({Sampler(SamplingParams(), ()).choose(flat) for _ in range(8)}) > 1


def test_greedy_takes_the_lowest_id_at_ties() -> None:
    assert Sampler(SamplingParams(temperature=0), ()).choose(ROW) == 1


def test_greedy_ignores_what_was_not_asked_for() -> None:
    """A penalty at its default must not change the arg-max, however often a token was seen."""
    sampler = Sampler(SamplingParams(temperature=0), [1] * 50)
    for _ in range(50):
        token_id = sampler.choose(ROW)
        sampler.record(token_id)
        assert token_id == 1


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (SamplingParams(temperature=0, repetition_penalty=1.5), [3, 5, 1, 1]),
        (SamplingParams(temperature=0, presence_penalty=1.0), [1, 3, 5, 1]),
        (SamplingParams(temperature=0, frequency_penalty=2.0), [1, 3, 5, 0]),
        (SamplingParams(temperature=0, logit_bias={6: 100.0}), [6, 6, 6, 6]),
    ],
)
def test_greedy_applies_what_was_asked_for(params: SamplingParams, expected: list[int]) -> None:
    sampler = Sampler(params, [1])
    tokens = []
    for _ in expected:
        tokens.append(sampler.choose(ROW))
        sampler.record(tokens[-1])
    assert tokens == expected


def test_choosing_again_gives_the_same_token() -> None:
    sampler = Sampler(SamplingParams(temperature=3.0, seed=1), ())
    for _ in range(20):
        token_id = sampler.choose(ROW)
        assert sampler.choose(ROW) == token_id
        sampler.record(token_id)


def test_a_tiny_temperature_is_greedy_but_for_ties() -> None:
    tokens = {Sampler(SamplingParams(temperature=5e-324, seed=seed), ()).choose(ROW) for seed in range(30)}
    assert tokens == {1, 3}

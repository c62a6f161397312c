from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from bento_kv.engine.logits import weigh
from bento_kv.engine.request import SamplingParams
from bento_kv.engine.sampler import Sampler, TokenCounts, uniform

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


def wide_row(spread: float) -> NDArray[np.float32]:
    """Logits of a vocabulary of several blocks, some of them alike."""
    row = np.random.default_rng(3).normal(0, spread, 3000)
    return np.round(row, 1).astype(np.float32)


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


@pytest.mark.parametrize("spread", [0.3, 2.0], ids=["flat", "peaked"])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.6),
        SamplingParams(top_p=0.9),
        SamplingParams(min_p=0.05),
        SamplingParams(top_k=40, top_p=0.8, temperature=0.7),
    ],
    ids=["plain", "temperature", "top_p", "min_p", "all"],
)
def test_tokens_of_a_wide_vocabulary_are_distributed_as_the_textbook_says(
    params: SamplingParams, spread: float
) -> None:
    """Tokens are put into groups that are expected at least ten times, as chi-square asks for."""
    row, count = wide_row(spread), 6000
    expected = np.asarray(textbook(row, params)) * count
    sampler, observed = Sampler(replace(params, seed=11), ()), np.zeros(len(row))
    for _ in range(count):
        token_id = sampler.choose(row)
        sampler.record(token_id)
        observed[token_id] += 1
    assert observed[expected == 0].sum() == 0
    groups = np.floor(np.cumsum(expected) / 10.001).astype(int)
    expected, observed = np.bincount(groups, expected), np.bincount(groups, observed)
    possible = expected > 0
    statistic = float(((observed - expected)[possible] ** 2 / expected[possible]).sum())
    assert statistic < chi_square_limit(int(possible.sum()) - 1)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.7}, {"min_p": 0.3}], ids=str)
def test_a_mask_chooses_as_if_the_other_tokens_were_not_there(temperature: float, filters: dict[str, float]) -> None:
    row = wide_row(2.0)
    allowed = np.zeros(len(row), dtype=bool)
    allowed[[5, 700, 701, 1500, 2999]] = True
    params = SamplingParams(temperature=temperature, seed=5, **filters)  # type: ignore[arg-type]
    masked, narrow = Sampler(params, ()), Sampler(params, ())
    for _ in range(50):
        token_id = masked.choose(row, allowed)
        assert token_id == np.flatnonzero(allowed)[narrow.choose(row[allowed])]
        masked.record(token_id)
        narrow.record(0)
    assert masked.choose(row, np.ones(len(row), dtype=bool)) == masked.choose(row)


def test_a_mask_sees_the_processed_logits() -> None:
    allowed = np.asarray([True, False, True, False, False, False, True, True])
    sampler = Sampler(SamplingParams(temperature=0, logit_bias={1: 50.0, 6: 9.0}), ())
    assert sampler.choose(ROW, allowed) == 6


@pytest.mark.parametrize("allowed", [np.zeros(8, dtype=bool), np.ones(9, dtype=bool)], ids=["none", "another size"])
def test_a_mask_that_cannot_be_followed_is_refused(allowed: NDArray[np.bool_]) -> None:
    with pytest.raises(ValueError, match="token mask"):
        Sampler(SamplingParams(), ()).choose(ROW, allowed)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0),
        SamplingParams(seed=1),
        SamplingParams(seed=1, top_p=0.9),
        SamplingParams(seed=1, top_k=30, min_p=0.1, repetition_penalty=1.2, frequency_penalty=0.5),
    ],
    ids=["greedy", "plain", "top_p", "all"],
)
def test_a_row_gives_the_same_bits_wherever_it_stands_in_memory(params: SamplingParams) -> None:
    """A row alone and a row of a block: vectorized loops must not tell their alignment."""
    row = wide_row(1.5)
    alone = Sampler(params, range(50)).choose(row)
    for offset in range(16):
        block = np.zeros(offset + len(row), dtype=np.float32)
        block[offset:] = row
        assert np.array_equal(weigh(block[offset:], 0.7), weigh(row, 0.7))
        assert Sampler(params, range(50)).choose(block[offset:]) == alone


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


def test_token_counts_are_those_of_the_tokens() -> None:
    ids = np.random.default_rng(0).integers(0, 100, 500).tolist()
    counts = TokenCounts(ids[:200])
    for token_id in ids[200:]:
        counts.add(token_id)
    assert dict(zip(counts.ids.tolist(), counts.counts.tolist(), strict=True)) == Counter(ids)

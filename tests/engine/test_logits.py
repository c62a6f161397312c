from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bento_kv.engine import logits as L

# Few distinct values, so that there are ties.
rows = st.lists(st.sampled_from([-3.0, -1.0, 0.0, 0.5, 0.5, 2.0, 4.0]), min_size=1, max_size=40).map(
    lambda values: np.asarray(values, dtype=np.float32)
)


def by_likelihood(values: NDArray[np.floating]) -> list[int]:
    return sorted(range(len(values)), key=lambda i: (-values[i], i))


@given(rows, st.integers(1, 50))
def test_top_k_is_the_head_of_a_full_sort(row: NDArray[np.float32], k: int) -> None:
    assert L.top_k(row, k).tolist() == sorted(by_likelihood(row)[:k])
    assert L.descending(row, k).tolist() == by_likelihood(row)[:k]


def kept_by_top_p(weights: NDArray[np.float64], p: float) -> list[int]:
    """By the definition, with exact sums; p times the whole is rounded once, so that 0.1 of 90 equal tokens are 9."""
    exact = [Fraction(float(weight)) for weight in weights]
    target = p * float(sum(exact))
    kept: list[int] = []
    mass = Fraction(0)
    for i in by_likelihood(weights):
        kept.append(i)
        mass += exact[i]
        if mass >= target:
            break
    return sorted(kept)


def top_p(weights: NDArray[np.float64], p: float) -> list[int]:
    """The ids that are kept; and what is kept must be as it was."""
    left = weights.copy()
    L.keep_top_p(left, p)
    kept = np.flatnonzero(left)
    assert np.array_equal(left[kept], weights[kept])
    return kept.tolist()


@given(rows | st.lists(st.floats(-80, 0), min_size=1, max_size=40).map(np.float32), st.floats(1e-6, 0.999))
def test_top_p_is_the_smallest_set_that_reaches_p(row: NDArray[np.float32], p: float) -> None:
    weights = L.weigh(row, 1.0)
    assert top_p(weights, p) == kept_by_top_p(weights, p)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    size=st.integers(1, 9000),
    spread=st.sampled_from([0.0, 1e-7, 0.1, 1.0, 3.0, 30.0, 300.0]),
    distinct=st.sampled_from([1, 2, 5, 10**6]),
    temperature=st.sampled_from([1.0, 0.3, 1e-3, 1e-300, 50.0]),
    p=st.floats(1e-6, 1 - 1e-9) | st.sampled_from([0.1, 0.25, 0.5, 0.9, 0.95, 0.99]),
)
def test_top_p_of_many_tokens(seed: int, size: int, spread: float, distinct: int, temperature: float, p: float) -> None:
    """Flat and peaked, with ties and without, all the same, a few likely ones among many that have no probability."""
    rng = np.random.default_rng(seed)
    row = (spread * np.round(rng.normal(0, 1, size) * distinct) / distinct).astype(np.float32)
    row[: size // 3] = row[0]
    row[rng.integers(0, size, size // 50)] += np.float32(8)
    weights = L.weigh(row, temperature)
    assert top_p(weights, p) == kept_by_top_p(weights, p)


def test_top_p_of_equal_tokens_is_exact_at_every_edge() -> None:
    """Whose sums are integers, so that a set can meet p exactly, and must not be one larger."""
    for size in (7, 1000, 3000):
        weights = L.weigh(np.full(size, 3.25, dtype=np.float32), 0.7)
        for p in (1e-9, 0.125, 0.25, 0.3, 0.5, 0.75, 0.999):
            assert top_p(weights, p) == list(range(math.ceil(p * size)))


@pytest.mark.parametrize("size", [64 * 7, 5000])
@pytest.mark.parametrize("distinct", [3, 10**6])
@pytest.mark.parametrize("k", [1, 6, 7, 77, 78, 79, 300])
def test_top_k_of_a_large_vocabulary(size: int, distinct: int, k: int) -> None:
    row = np.random.default_rng(k).integers(0, distinct, size).astype(np.float32)
    assert L.top_k(row, k).tolist() == sorted(by_likelihood(row)[:k])


def test_top_p_keeps_the_token_that_crosses_and_at_least_one() -> None:
    weights = np.asarray([0.4, 1.0, 0.6])
    assert top_p(weights, 1e-9) == [1]
    assert top_p(weights, 0.5) == [1]
    assert top_p(weights, 0.51) == [1, 2]


@pytest.mark.parametrize(("p", "kept"), [(0.2, [0, 1, 3]), (1.0, [1])])
def test_min_p_is_relative_to_the_likeliest(p: float, kept: list[int]) -> None:
    weights = np.asarray([0.1, 0.5, 0.05, 0.35])
    L.keep_min_p(weights, p)
    assert np.flatnonzero(weights).tolist() == kept


def test_repetition_penalty_pushes_down_whatever_the_sign() -> None:
    row = np.asarray([2.0, -2.0, 3.0, 0.0], dtype=np.float32)
    assert L.apply_repetition_penalty(row, np.asarray([0, 1, 3]), 2.0).tolist() == [1.0, -4.0, 3.0, 0.0]
    assert row.tolist() == [2.0, -2.0, 3.0, 0.0]


def test_output_penalties_are_openais() -> None:
    row = np.zeros(3, dtype=np.float32)
    assert L.apply_output_penalties(row, np.asarray([0, 2]), np.asarray([3.0, 1.0]), 0.5, 0.25).tolist() == [
        -1.25,
        0.0,
        -0.75,
    ]


def test_extreme_values_saturate() -> None:
    row = np.asarray([1.0, -1.0, 5.0], dtype=np.float32)
    for changed in (
        L.apply_logit_bias(row, {0: 1e308, 1: -1e308}),
        L.apply_repetition_penalty(row, np.asarray([0, 1]), 1e-320),
        L.apply_repetition_penalty(row, np.asarray([0, 1]), 1e308),
        L.apply_output_penalties(row, np.asarray([0]), np.asarray([9.0]), 1e308, -1e308),
    ):
        assert np.isfinite(changed).all()
        assert L.weigh(changed, 5e-324).sum() == 1


@given(rows, st.floats(0.05, 5))
def test_weights_are_the_textbooks_softmax(row: NDArray[np.float32], temperature: float) -> None:
    found = L.weigh(row, temperature)
    expected = np.asarray([math.exp(value / temperature - 100) for value in row.tolist()])
    assert found.max() == 1
    np.testing.assert_allclose(found / found.sum(), expected / expected.sum(), rtol=1e-9, atol=1e-300)


@settings(max_examples=200)
@given(st.lists(st.sampled_from([0.0, 0.1, 1.0]), min_size=1, max_size=9), st.floats(0, 1, exclude_max=True))
def test_inverse_cdf_never_chooses_what_has_no_mass(weights: list[float], uniform: float) -> None:
    if sum(weights):
        assert weights[L.inverse_cdf(np.asarray(weights), uniform)] > 0


def test_inverse_cdf_lays_weights_side_by_side() -> None:
    weights = np.asarray([0.5, 0.0, 1.0, 0.5])
    uniforms = [0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-53]
    assert [L.inverse_cdf(weights, u) for u in uniforms] == [0, 0, 2, 2, 3, 3]


@pytest.mark.parametrize("size", [1, 511, 512, 513, 1024, 5000])
def test_inverse_cdf_of_many_is_that_of_one_running_sum(size: int) -> None:
    """Integers, so that the sums of blocks and of single weights are the same; whole blocks of them zero."""
    rng = np.random.default_rng(size)
    weights = rng.integers(0, 3, size).astype(np.float64)
    weights[600:1700] = 0
    weights[0] += 1
    mass = np.cumsum(weights)
    for uniform in [0.0, 1 - 2**-53, *rng.random(200)]:
        assert L.inverse_cdf(weights, uniform) == np.flatnonzero(mass > uniform * mass[-1])[0]


def test_token_logprobs_are_of_the_whole_distribution() -> None:
    row = np.asarray([1.0, 3.0, 3.0, -50.0], dtype=np.float32)
    found = L.token_logprobs(row, 3, 3)
    total = math.log(sum(math.exp(value) for value in row.tolist()))
    assert found.token_id == 3
    assert found.logprob == pytest.approx(-50 - total)
    assert [i for i, _ in found.top] == [1, 2, 0]
    assert [logprob for _, logprob in found.top] == pytest.approx([3 - total, 3 - total, 1 - total])
    assert L.token_logprobs(row, 0, 0).top == ()
    assert len(L.token_logprobs(row, 0, 99).top) == 4

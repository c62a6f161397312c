from __future__ import annotations

import math

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


@given(rows, st.floats(0.001, 0.999))
def test_top_p_is_the_smallest_set_that_reaches_p(row: NDArray[np.float32], p: float) -> None:
    probabilities = L.softmax(row, 1.0)
    kept: list[int] = []
    mass = 0.0
    for i in by_likelihood(probabilities):
        kept.append(i)
        mass += float(probabilities[i])
        if mass >= p:
            break
    assert L.top_p(probabilities, p).tolist() == sorted(kept)


@pytest.mark.parametrize("size", [64 * 7, 5000])
@pytest.mark.parametrize("distinct", [3, 10**6])
@pytest.mark.parametrize("k", [1, 6, 7, 77, 78, 79, 300])
def test_top_k_of_a_large_vocabulary(size: int, distinct: int, k: int) -> None:
    row = np.random.default_rng(k).integers(0, distinct, size).astype(np.float32)
    assert L.top_k(row, k).tolist() == sorted(by_likelihood(row)[:k])


def test_top_p_of_a_large_flat_vocabulary_needs_the_whole_sort() -> None:
    probabilities = np.full(8192, 1 / 8192)  # powers of two, so that sums are exact
    for size in (64, 2048, 6144, 8191):
        assert L.top_p(probabilities, size / 8192).tolist() == list(range(size))


def test_top_p_keeps_the_token_that_crosses_and_at_least_one() -> None:
    probabilities = np.asarray([0.2, 0.5, 0.3])
    assert L.top_p(probabilities, 1e-9).tolist() == [1]
    assert L.top_p(probabilities, 0.5).tolist() == [1]
    assert L.top_p(probabilities, 0.51).tolist() == [1, 2]


def test_min_p_is_relative_to_the_likeliest() -> None:
    probabilities = np.asarray([0.1, 0.5, 0.05, 0.35])
    assert L.min_p(probabilities, 0.2).tolist() == [0, 1, 3]
    assert L.min_p(probabilities, 1.0).tolist() == [1]


def test_repetition_penalty_pushes_down_whatever_the_sign() -> None:
    row = np.asarray([2.0, -2.0, 3.0, 0.0], dtype=np.float32)
    assert L.apply_repetition_penalty(row, np.asarray([0, 1, 3]), 2.0).tolist() == [1.0, -4.0, 3.0, 0.0]
    assert row.tolist() == [2.0, -2.0, 3.0, 0.0]


def test_output_penalties_are_openais() -> None:
    row = np.zeros(3, dtype=np.float32)
    assert L.apply_output_penalties(row, {0: 3, 2: 1}, 0.5, 0.25).tolist() == [-1.25, 0.0, -0.75]


def test_extreme_values_saturate() -> None:
    row = np.asarray([1.0, -1.0, 5.0], dtype=np.float32)
    for changed in (
        L.apply_logit_bias(row, {0: 1e308, 1: -1e308}),
        L.apply_repetition_penalty(row, np.asarray([0, 1]), 1e-320),
        L.apply_repetition_penalty(row, np.asarray([0, 1]), 1e308),
        L.apply_output_penalties(row, {0: 9}, 1e308, -1e308),
    ):
        assert np.isfinite(changed).all()
        assert L.softmax(changed, 5e-324).sum() == pytest.approx(1)


@given(rows, st.floats(0.05, 5))
def test_softmax_is_the_textbooks(row: NDArray[np.float32], temperature: float) -> None:
    weights = [math.exp(value / temperature - 100) for value in row.tolist()]
    np.testing.assert_allclose(L.softmax(row, temperature), np.asarray(weights) / sum(weights), rtol=1e-9, atol=1e-300)


@settings(max_examples=200)
@given(st.lists(st.sampled_from([0.0, 0.1, 1.0]), min_size=1, max_size=9), st.floats(0, 1, exclude_max=True))
def test_inverse_cdf_never_chooses_what_has_no_mass(weights: list[float], uniform: float) -> None:
    if sum(weights):
        assert weights[L.inverse_cdf(np.asarray(weights), uniform)] > 0


def test_inverse_cdf_lays_probabilities_side_by_side() -> None:
    probabilities = np.asarray([0.25, 0.0, 0.5, 0.25])
    uniforms = [0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-53]
    assert [L.inverse_cdf(probabilities, u) for u in uniforms] == [0, 0, 2, 2, 3, 3]


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

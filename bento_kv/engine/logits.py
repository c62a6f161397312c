"""Pure functions on one position's logits `[vocab_size]` or probabilities: no batch, no state, nothing changed in place.

So a row's result cannot depend on its neighbours. Ties go to the lower id everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bento_kv.engine.request import TokenLogprobs

Logits = NDArray[np.floating[Any]]
Probabilities = NDArray[np.float64]
Ids = NDArray[np.intp]

_LARGEST = float(np.finfo(np.float32).max)  # an extreme bias or penalty saturates here instead of becoming infinite


def apply_logit_bias(logits: Logits, bias: Mapping[int, float]) -> Logits:
    """Add to each token's logit its bias (OpenAI's `logit_bias`)."""
    ids = _ids(bias)
    return _replace(logits, ids, logits[ids].astype(np.float64) + np.fromiter(bias.values(), np.float64, len(bias)))


def apply_repetition_penalty(logits: Logits, ids: Ids, penalty: float) -> Logits:
    """Divide positive logits of the distinct `ids` by the penalty and multiply negative ones (CTRL, arXiv 1909.05858).

    The paper only divides, which would favour a repetition with a negative logit; implementations multiply there.
    """
    seen = logits[ids].astype(np.float64)
    with np.errstate(over="ignore"):
        return _replace(logits, ids, np.where(seen > 0, seen / penalty, seen * penalty))


def apply_output_penalties(logits: Logits, counts: Mapping[int, int], presence: float, frequency: float) -> Logits:
    """Subtract `presence` and `count * frequency` from the logit of each token that the output has (OpenAI's formula)."""
    ids = _ids(counts)
    repeats = np.fromiter(counts.values(), np.float64, len(counts))
    with np.errstate(over="ignore"):
        return _replace(logits, ids, logits[ids].astype(np.float64) - presence - repeats * frequency)


def softmax(logits: Logits, temperature: float) -> Probabilities:
    """Probabilities at a temperature above 0, in float64."""
    weights = logits.astype(np.float64)
    weights -= weights.max()
    with np.errstate(over="ignore"):  # a tiny temperature makes -inf of all but the largest, and 0 of that
        weights /= temperature
    np.exp(weights, out=weights)
    weights /= weights.sum()
    return weights


def top_k(values: Logits, k: int) -> Ids:
    """The ids of the k largest values, ascending by id."""
    if k >= len(values):
        return np.arange(len(values))
    candidates = values
    columns = len(values) // 64
    if columns > k:
        # k of the columns of a table of the values have a largest one that is at least the k-th largest of these, so the
        # k-th largest value is, too. That leaves few candidates for the costly partition.
        largest = values[: 64 * columns].reshape(64, columns).max(axis=0)
        candidates = values[values >= np.partition(largest, columns - k)[columns - k]]
    return _largest(values, k, np.partition(candidates, len(candidates) - k)[len(candidates) - k])


def top_p(probabilities: Probabilities, p: float) -> Ids:
    """The smallest set of likeliest ids whose probability reaches p, the one that crosses included; ascending by id.

    (Nucleus sampling, arXiv 1904.09751.) Mostly the tokens that are not far less likely than the likeliest reach p, and
    the others need no sorting.
    """
    for ratio in (1e-2, 1e-4, 1e-6, 0.0):
        likeliest = np.sort(probabilities[probabilities >= ratio * probabilities.max()])[::-1]
        mass = np.cumsum(likeliest)
        if mass[-1] >= p:
            break
    count = min(int(np.searchsorted(mass, p, side="left")) + 1, len(likeliest))
    return _largest(probabilities, count, likeliest[count - 1])


def min_p(probabilities: Probabilities, p: float) -> Ids:
    """The ids at least p times as likely as the likeliest, ascending (arXiv 2407.01082)."""
    return np.flatnonzero(probabilities >= p * probabilities.max())


def descending(values: Logits, count: int) -> Ids:
    """The ids of the `count` largest values, largest first."""
    ids = top_k(values, count)
    return np.asarray(ids[np.argsort(-values[ids], kind="stable")])


def inverse_cdf(probabilities: Probabilities, uniform: float) -> int:
    """The index that a uniform number of [0, 1) falls on when the probabilities are laid side by side in order."""
    mass = np.cumsum(probabilities)
    last = int(
        np.searchsorted(mass, mass[-1], side="left")
    )  # rounding may reach the end; what has no mass is not chosen
    return min(int(np.searchsorted(mass, uniform * mass[-1], side="right")), last)


def token_logprobs(logits: Logits, token_id: int, count: int) -> TokenLogprobs:
    """Log-probabilities of one token and of the `count` likeliest, in float64, of unprocessed logits."""
    exact = logits.astype(np.float64)
    exact -= exact.max()
    exact -= np.log(np.exp(exact).sum())
    ids = descending(logits, count) if count else np.arange(0)
    return TokenLogprobs(token_id, float(exact[token_id]), tuple((int(i), float(exact[i])) for i in ids))


def _ids(mapping: Mapping[int, Any]) -> Ids:
    return np.fromiter(mapping, np.intp, len(mapping))


def _largest(values: Logits, count: int, least: np.floating[Any]) -> Ids:
    """The ids of the `count` largest values, of which `least` is the smallest, ascending by id."""
    above = np.flatnonzero(values > least)
    ties = np.flatnonzero(values == least)[: count - len(above)]
    return np.sort(np.concatenate([above, ties]))


def _replace(logits: Logits, ids: Ids, values: NDArray[np.float64]) -> Logits:
    changed = logits.astype(np.float64)
    changed[ids] = np.clip(values, -_LARGEST, _LARGEST)
    return changed

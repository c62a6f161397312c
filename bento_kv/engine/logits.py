"""Functions on one position's logits `[vocab_size]`: no batch and no state, so a row's result cannot depend on its neighbours.

Logits are never changed in place. Weights are probabilities up to a factor, the likeliest at exactly 1; filters take what
they drop to 0 in place, because copies of a large vocabulary are what sampling would spend its time on. Unnormalised, equal
weights have exact sums, and no other weights can meet a nucleus' edge exactly (Lindemann-Weierstrass). Ties go to the lower
id everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bento_kv.engine.request import TokenLogprobs

Logits = NDArray[np.floating[Any]]
Weights = NDArray[np.float64]
Ids = NDArray[np.intp]

_LARGEST = float(np.finfo(np.float32).max)  # an extreme bias or penalty saturates here instead of becoming infinite
_LIKELY = 1e-3  # a nucleus mostly lies among the tokens at least this times as likely as the likeliest
_SORTABLE = 1024  # weights that are quicker to sort than to put into buckets
_BUCKET_BITS = 12
_BLOCK = 512


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


def apply_output_penalties(
    logits: Logits, ids: Ids, counts: NDArray[np.float64], presence: float, frequency: float
) -> Logits:
    """Subtract `presence` and `count * frequency` from the logits of the distinct `ids` of the output (OpenAI's formula)."""
    with np.errstate(over="ignore"):
        return _replace(logits, ids, logits[ids].astype(np.float64) - presence - counts * frequency)


def weigh(logits: Logits, temperature: float) -> Weights:
    """Softmax but for its last division: weights, the largest 1, at a temperature above 0. In float64."""
    weights: Weights = np.subtract(logits, logits.max(), dtype=np.float64)
    if temperature != 1:
        with np.errstate(over="ignore"):  # a tiny temperature makes -inf of all but the largest, and 0 of that
            weights *= min(1 / temperature, float(np.finfo(np.float64).max))
    np.exp(weights, out=weights)
    return weights


def top_k(values: Logits, k: int) -> Ids:
    """The ids of the k largest values, ascending by id."""
    if k >= len(values):
        return np.arange(len(values))
    columns = len(values) // 64
    if columns <= k:
        return _largest(values, k)
    # k of the columns of a table of the values have a largest one that is at least the k-th largest of these, so the k-th
    # largest value is, too. That leaves few candidates for all that follows.
    largest = values[: 64 * columns].reshape(64, columns).max(axis=0)
    candidates = np.flatnonzero(values >= np.partition(largest, columns - k)[columns - k])
    return candidates[_largest(values[candidates], k)]


def keep_top_p(weights: Weights, p: float) -> None:
    """Keep the smallest set of likeliest ids whose probability reaches p, the one that crosses included.

    (Nucleus sampling, arXiv 1904.09751.)
    """
    least, ties = _nucleus_edge(weights, p * weights.sum())
    surplus = np.flatnonzero(weights == least)[ties:]
    np.multiply(weights, weights >= least, out=weights)
    weights[surplus] = 0


def keep_min_p(weights: Weights, p: float) -> None:
    """Keep the ids at least p times as likely as the likeliest (arXiv 2407.01082)."""
    np.multiply(weights, weights >= p * weights.max(), out=weights)


def descending(values: Logits, count: int) -> Ids:
    """The ids of the `count` largest values, largest first."""
    ids = top_k(values, count)
    return np.asarray(ids[np.argsort(-values[ids], kind="stable")])


def inverse_cdf(weights: Weights, uniform: float) -> int:
    """The index that a uniform number of [0, 1) falls on when the weights are laid side by side in order.

    A running sum adds one by one, which is slow: blocks are summed, and the sum runs through the blocks and then through one.
    """
    mass = np.cumsum(np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK)))
    target = uniform * mass[-1]
    block = _first_above(mass, target)
    start = block * _BLOCK
    before = mass[block - 1] if block else 0.0
    return start + _first_above(np.cumsum(weights[start : start + _BLOCK]), target - before)


def token_logprobs(logits: Logits, token_id: int, count: int, *, offset: int = 0) -> TokenLogprobs:
    """Log-probabilities of one token, whose text begins at `offset`, and of the `count` likeliest, in float64, of
    unprocessed logits."""
    shift = float(logits.max()) + math.log(weigh(logits, 1.0).sum())
    ids = descending(logits, count) if count else np.arange(0)
    top = zip(ids.tolist(), (logits[ids].astype(np.float64) - shift).tolist(), strict=True)
    return TokenLogprobs(token_id, float(logits[token_id]) - shift, tuple(top), offset)


def _ids(mapping: Mapping[int, Any]) -> Ids:
    return np.fromiter(mapping, np.intp, len(mapping))


def _replace(logits: Logits, ids: Ids, values: NDArray[np.float64]) -> Logits:
    changed = logits.copy()
    changed[ids] = np.clip(values, -_LARGEST, _LARGEST)
    return changed


def _largest(values: Logits, count: int) -> Ids:
    """The ids of the `count` largest values, fewer than all, ascending by id."""
    least = np.partition(values, len(values) - count)[len(values) - count]
    above = np.flatnonzero(values > least)
    ties = np.flatnonzero(values == least)[: count - len(above)]
    return np.sort(np.concatenate([above, ties]))


def _nucleus_edge(weights: Weights, target: float) -> tuple[float, int]:
    """The least weight of the smallest set of largest ones whose sum reaches the target, and how many such weights it has.

    A radix selection by mass instead of a sort: weights go into buckets by the leading bits in which they differ (those of
    floats that are not negative are in their order), and only the bucket where the target is crossed is looked into.
    """
    rest, above = weights, 0.0  # the crossing is among `rest`; what is larger has the mass `above`
    likely = weights >= _LIKELY * weights.max()
    if 8 * np.count_nonzero(likely) < len(weights) and (peak := weights[likely]).sum() >= target:
        rest = peak
    while len(rest) > _SORTABLE:
        bits = rest.view(np.int64)
        largest = bits.max()
        span = int(largest - bits.min())
        if span == 0:
            break  # all are equal
        buckets = largest - bits  # of the largest weights: 0
        buckets >>= max(0, span.bit_length() - _BUCKET_BITS)
        mass = above + np.cumsum(np.bincount(buckets, weights=rest))
        crossing = min(int(np.searchsorted(mass, target)), len(mass) - 1)  # rounding may keep all below the target
        above = float(mass[crossing - 1]) if crossing else above
        rest = rest[buckets == crossing]
    ordered = np.sort(rest)[::-1]
    count = min(int(np.searchsorted(above + np.cumsum(ordered), target)) + 1, len(ordered))
    least = ordered[count - 1]
    return float(least), count - int(np.count_nonzero(ordered > least))


def _first_above(mass: NDArray[np.float64], target: float) -> int:
    """The first place where the running sum exceeds the target; if rounding keeps it below, the last that adds to it."""
    last = np.searchsorted(mass, mass[-1], side="left")
    return int(min(np.searchsorted(mass, target, side="right"), last))

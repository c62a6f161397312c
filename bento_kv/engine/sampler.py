"""How one request chooses its tokens."""

from __future__ import annotations

import secrets
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from bento_kv.engine.logits import (
    Ids,
    Logits,
    apply_logit_bias,
    apply_output_penalties,
    apply_repetition_penalty,
    inverse_cdf,
    keep_min_p,
    keep_top_p,
    top_k,
    weigh,
)
from bento_kv.engine.request import SamplingParams


def uniform(seed: int, index: int) -> float:
    """The number in [0, 1) that decides a request's token `index`: a function of the two and of nothing else.

    Philox is counter-based, so a token that is computed again, or checked before its turn, meets the same number
    (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011). Seeds are taken modulo 2**128.
    """
    raw = np.random.Philox(key=seed % 2**128, counter=index).random_raw()
    return float(int(raw) >> 11) * 2.0**-53


class TokenCounts:
    """Distinct tokens, in order of their first appearance, and how often each came: arrays that grow by appending."""

    def __init__(self, token_ids: Iterable[int] = ()) -> None:
        self._places: dict[int, int] = {}
        self._ids = np.zeros(16, np.intp)
        self._counts = np.zeros(16)
        for token_id in token_ids:
            self.add(token_id)

    @property
    def ids(self) -> Ids:
        """`[distinct]`"""
        return self._ids[: len(self._places)]

    @property
    def counts(self) -> NDArray[np.float64]:
        """`[distinct]`"""
        return self._counts[: len(self._places)]

    def add(self, token_id: int) -> None:
        place = self._places.setdefault(token_id, len(self._places))
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[place] = token_id
        self._counts[place] += 1


class Sampler:
    """Chooses tokens from logits, for one request.

    The order is that of vLLM (`vllm.v1.sample.sampler`: logit bias, repetition, frequency and presence penalty, temperature)
    and then that of Hugging Face's `generate` (temperature, top-k, top-p, min-p). Each filter sees what the ones before it
    left, renormalised. A parameter at its default is skipped, not applied with no effect. Temperature 0 takes the largest
    processed logit, the lowest id of several.

    Args:
        params: in range, as `RequestLimits.check` leaves them.
        prompt_ids: what the repetition penalty counts as seen.
    """

    def __init__(self, params: SamplingParams, prompt_ids: Iterable[int]) -> None:
        self._params = params
        self._seed = secrets.randbits(128) if params.seed is None else params.seed
        self._seen = TokenCounts(prompt_ids) if params.repetition_penalty != 1.0 else None
        self._output = TokenCounts() if params.presence_penalty or params.frequency_penalty else None
        self._length = 0

    def choose(self, logits: NDArray[np.float32], allowed: NDArray[np.bool_] | None = None) -> int:
        """The next token of the output so far. Does not record it.

        Args:
            logits: `[vocab_size]`, all finite.
            allowed: `[vocab_size]`, the tokens to choose among; all unless given. What is not allowed has no probability.

        Raises:
            ValueError: `allowed` is of another shape, or allows no token.
        """
        params = self._params
        processed = self._process(logits)
        kept: Ids | None = None  # all, unless a filter is on; a token's place among the kept ones is in order of ids
        if allowed is not None:
            kept = _allowed_ids(allowed, processed)
            processed = processed[kept]
        if params.temperature == 0:
            place = int(processed.argmax())
        else:
            if 0 < params.top_k < len(processed):
                largest = top_k(processed, params.top_k)
                kept = largest if kept is None else kept[largest]
                processed = processed[largest]
            weights = weigh(processed, params.temperature)
            if params.top_p < 1:
                keep_top_p(weights, params.top_p)
            if params.min_p > 0:
                keep_min_p(weights, params.min_p)
            place = inverse_cdf(weights, uniform(self._seed, self._length))
        return place if kept is None else int(kept[place])

    def record(self, token_id: int) -> None:
        """Make a token the last of the output."""
        self._length += 1
        for counts in (self._seen, self._output):
            if counts is not None:
                counts.add(token_id)

    def _process(self, logits: Logits) -> Logits:
        params = self._params
        if params.logit_bias:
            logits = apply_logit_bias(logits, params.logit_bias)
        if self._seen is not None:
            logits = apply_repetition_penalty(logits, self._seen.ids, params.repetition_penalty)
        if self._output is not None:
            ids, counts = self._output.ids, self._output.counts
            logits = apply_output_penalties(logits, ids, counts, params.presence_penalty, params.frequency_penalty)
        return logits


def _allowed_ids(allowed: NDArray[np.bool_], logits: Logits) -> Ids:
    if allowed.shape != logits.shape:
        raise ValueError(f"the token mask has the shape {allowed.shape} and the logits {logits.shape}")
    ids = np.flatnonzero(allowed)
    if not len(ids):
        raise ValueError("the token mask allows no token")
    return ids

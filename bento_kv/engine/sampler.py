"""How one request chooses its tokens."""

from __future__ import annotations

import secrets
from collections import Counter
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
    min_p,
    softmax,
    top_k,
    top_p,
)
from bento_kv.engine.request import SamplingParams


def uniform(seed: int, index: int) -> float:
    """The number in [0, 1) that decides a request's token `index`: a function of the two and of nothing else.

    Philox is counter-based, so a token that is computed again, or checked before its turn, meets the same number
    (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011). Seeds are taken modulo 2**128.
    """
    raw = np.random.Philox(key=seed % 2**128, counter=index).random_raw()
    return float(int(raw) >> 11) * 2.0**-53


class Sampler:
    """Chooses tokens from logits, for one request.

    The order is that of vLLM (`vllm.v1.sample.sampler`: logit bias, repetition, frequency and presence penalty, temperature)
    and then that of Hugging Face's `generate` (temperature, top-k, top-p, min-p). Each filter sees what the ones before it
    left, renormalised. A parameter at its default is skipped, not applied with no effect. Temperature 0 takes the largest
    processed logit, the lowest id of several.

    Args:
        params: in range, as `Limits.check` leaves them.
        prompt_ids: what the repetition penalty counts as seen.
    """

    def __init__(self, params: SamplingParams, prompt_ids: Iterable[int]) -> None:
        self._params = params
        self._seed = secrets.randbits(128) if params.seed is None else params.seed
        self._seen = set(prompt_ids) if params.repetition_penalty != 1.0 else set()
        self._output: Counter[int] = Counter()
        self._length = 0

    def choose(self, logits: NDArray[np.float32]) -> int:
        """The next token of the output so far, by its logits `[vocab_size]`, all finite. Does not record it."""
        params = self._params
        processed = self._process(logits)
        if params.temperature == 0:
            return int(processed.argmax())
        kept: Ids | None = None  # all, unless a filter is on; a token's place among the kept ones is in order of ids
        if 0 < params.top_k < len(processed):
            kept = top_k(processed, params.top_k)
            processed = processed[kept]
        probabilities = softmax(processed, params.temperature)
        if params.top_p < 1:
            nucleus = top_p(probabilities, params.top_p)
            kept = nucleus if kept is None else kept[nucleus]
            probabilities = probabilities[nucleus]
        if params.min_p > 0:
            likely = min_p(probabilities, params.min_p)
            kept = likely if kept is None else kept[likely]
            probabilities = probabilities[likely]
        place = inverse_cdf(probabilities, uniform(self._seed, self._length))
        return place if kept is None else int(kept[place])

    def record(self, token_id: int) -> None:
        """Make a token the last of the output."""
        self._length += 1
        self._output[token_id] += 1
        if self._params.repetition_penalty != 1.0:
            self._seen.add(token_id)

    def _process(self, logits: Logits) -> Logits:
        params = self._params
        if params.logit_bias:
            logits = apply_logit_bias(logits, params.logit_bias)
        if params.repetition_penalty != 1.0:
            seen = np.fromiter(self._seen, np.intp, len(self._seen))
            logits = apply_repetition_penalty(logits, seen, params.repetition_penalty)
        if self._output and (params.presence_penalty or params.frequency_penalty):
            logits = apply_output_penalties(logits, self._output, params.presence_penalty, params.frequency_penalty)
        return logits

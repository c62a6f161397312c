"""Whether the number of threads changes what is computed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bento_kv.contract.checks import at_most, scaled_error
from bento_kv.contract.decoder import Decoder
from bento_kv.contract.plan import StepPlan, StepRow
from bento_kv.contract.precision import FP32_LIMIT
from bento_kv.contract.verification import Check

COUNTS = (1, 2)
_PROMPT = 100
_DECODED = 8


class ThreadComparison:
    """Logits of one sequence with the number of threads that serves, against others.

    The limit is rounding's: with another number of threads, kernels may sum in another order, and no law is broken by
    it, for steps and neighbours meet the same number.

    Args:
        ids: the sequence: a prompt and some tokens to decode.
        served: the number of threads that `remember` meets.
        limit: of the error.
    """

    def __init__(self, ids: Sequence[int], served: int, limit: float = FP32_LIMIT) -> None:
        self._ids = ids[: _PROMPT + _DECODED]
        self._served = served
        self._limit = limit
        self._expected: NDArray[np.float32] | None = None

    @property
    def others(self) -> list[int]:
        """Numbers of threads to compare with."""
        return [count for count in COUNTS if count != self._served]

    def remember(self, decoder: Decoder) -> list[Check]:
        """Compute with the threads that serve; there is nothing to check yet."""
        self._expected = self._compute(decoder)
        return []

    def compare(self, decoder: Decoder, threads: int) -> Check:
        """Compute with `threads`, after `remember`."""
        if self._expected is None:
            raise ValueError("nothing was remembered to compare with")
        error = scaled_error(self._compute(decoder), self._expected)
        text = (
            f"largest error of the logits of {len(self._ids)} tokens, {threads} against {self._served} threads, "
            "relative to the largest logit; 0 is equal to the last bit"
        )
        return at_most(f"threads-{threads}", error, self._limit, text)

    def _compute(self, decoder: Decoder) -> NDArray[np.float32]:
        prompt = max(1, len(self._ids) - _DECODED)
        logits = [decoder.step(StepPlan([StepRow(0, self._ids[:prompt], 0, prompt)])).copy()]
        for at in range(prompt, len(self._ids)):
            logits.append(decoder.step(StepPlan([StepRow(0, self._ids[at : at + 1], at)])).copy())
        return np.concatenate(logits)

"""How checks are measured: a number, a limit, and what they mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bento_kv.contract.decoder import Decoder
from bento_kv.contract.precision import FP32_LIMIT
from bento_kv.contract.remedies import Remedy
from bento_kv.contract.verification import Check

_MASKED = 1e30


def at_most(id: str, measured: float, limit: float, explain: str, remedies: Sequence[Remedy] = ()) -> Check:
    """A check that passes if measured <= limit; not a number never passes. A failed one keeps the remedies."""
    passed = bool(measured <= limit)
    return Check(
        id=id,
        passed=passed,
        measured=_finite(measured),
        limit=limit,
        explain=explain,
        remedies=() if passed else tuple(remedies),
    )


def holds(id: str, faults: list[str], explain: str) -> Check:
    """A check that counts faults, none of which is allowed; the first is named."""
    text = f"{explain}: {faults[0]}" if faults else explain
    return Check(id=id, passed=not faults, measured=float(len(faults)), limit=0.0, explain=text)


def _finite(value: float) -> float | None:
    # JSON has no NaN and no infinity; a check without a number has failed.
    return float(value) if np.isfinite(value) else None


def scaled_error(got: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Largest absolute difference over the largest expected magnitude (at least 1).

    Infinite for another shape and where a number is not finite. Values that stand for minus infinity, as some models
    give to tokens that they never say, take no part in the magnitude.
    """
    if got.shape != expected.shape:
        return float("inf")
    magnitudes = np.abs(expected, dtype=np.float64)
    return difference(got, expected) / max(1.0, float(magnitudes.max(initial=0.0, where=magnitudes < _MASKED)))


def difference(got: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Largest absolute difference; 0.0 means equal to the last bit, up to the sign of zero. Not a number is infinite."""
    largest = float(np.abs(got.astype(np.float64) - expected.astype(np.float64)).max(initial=0.0))
    return largest if np.isfinite(largest) else float("inf")


@dataclass(slots=True)
class Worst:
    """The largest error seen and where."""

    error: float = 0.0
    where: str = ""

    def see(self, error: float, where: str) -> None:
        number = error if np.isfinite(error) else float("inf")
        if number > self.error:
            self.error, self.where = number, where

    def describe(self, text: str) -> str:
        return f"{text}; largest at {self.where}" if self.where else text


def of_any_chunks(decoder: Decoder) -> tuple[Callable[[NDArray[np.float32], NDArray[np.float32]], float], float]:
    """How results are compared that were computed in other chunks, and the limit: to the last bit where that holds."""
    return (difference, 0.0) if decoder.chunk_exact else (scaled_error, FP32_LIMIT)

"""Quantized weights against the floats that they were made from: near enough to be those, and not others or damaged."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bento_kv.contract.checks import Worst, at_most
from bento_kv.contract.precision import PRECISIONS
from bento_kv.contract.quantization import BlockWeights, ColumnWeights
from bento_kv.contract.verification import Check

# Frobenius norm of the error over that of the weight. Normal weights come to 0.08 to 0.11 with 4 bits and 0.005 to 0.008
# with 8, outliers take it to about twice that; 2 bits come to 0.45 and more, a weight of another layer to 1.4.
WEIGHT_LIMITS = {row.bits: row.weight_error for row in PRECISIONS.values() if row.weight_error is not None}
# The same of values that share a scale, relative to them. Rounding to nearest cannot reach it in 4 bits: where one value
# takes all 15 steps and 255 others vanish, it comes to 0.73. A scale that is twice too large comes to 1.
BLOCK_LIMIT = 0.75
_AT_ONCE = 1 << 20  # values


@dataclass(slots=True)
class WeightErrors:
    """The largest errors seen of any weight, by the number of bits."""

    count: int = 0
    _weights: dict[int, Worst] = field(default_factory=dict)
    _blocks: dict[int, Worst] = field(default_factory=dict)

    def see(self, name: str, floats: NDArray[np.float32], quantized: BlockWeights | ColumnWeights) -> None:
        """Compare a weight with its floats `[N, K]`, in pieces: large ones are not made floats at once."""
        bits = quantized.bits if isinstance(quantized, BlockWeights) else 8
        size = quantized.block_size if isinstance(quantized, BlockWeights) else floats.shape[1]
        error, norm, worst_block, where = 0.0, 0.0, 0.0, 0
        step = max(1, _AT_ONCE // floats.shape[1])
        for first in range(0, floats.shape[0], step):
            theirs = floats[first : first + step]
            errors = _squares(quantized.rows(first, first + step).dequantize() - theirs, size)
            norms = _squares(theirs, size)
            error += float(errors.sum())
            norm += float(norms.sum())
            # Of a block without anything in it, anything is infinitely much.
            shares = np.divide(errors, norms, out=np.where(errors > 0, np.inf, 0.0), where=norms > 0)
            row = int(shares.max(axis=1).argmax())
            if not shares[row].max() <= worst_block:
                worst_block, where = float(shares[row].max()), first + row
        self.count += 1
        for found, share, place in (
            (self._weights, error / norm if norm else float(error > 0), name),
            (self._blocks, worst_block, f"{name}, output {where}"),
        ):
            found.setdefault(bits, Worst()).see(share**0.5, place)

    def checks(self) -> list[Check]:
        """Two of every number of bits that was seen."""
        found = []
        for bits, worst in sorted(self._weights.items()):
            text = (
                f"largest error of a weight of {bits} bits, made floats again, relative to the reference's (Frobenius)"
            )
            found.append(at_most(f"weights-int{bits}", worst.error, WEIGHT_LIMITS[bits], worst.describe(text)))
            worst = self._blocks[bits]
            text = "the same of values that share a scale"
            found.append(at_most(f"weight-blocks-int{bits}", worst.error, BLOCK_LIMIT, worst.describe(text)))
        return found


def _squares(values: NDArray[np.float32], size: int) -> NDArray[np.float64]:
    """Sums of squares of values that share a scale: `[N, K]` to `[N, blocks]`."""
    starts = np.arange(0, values.shape[1], size)
    sums: NDArray[np.float64] = np.add.reduceat(np.square(values), starts, axis=1, dtype=np.float64)
    return sums

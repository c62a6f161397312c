"""Blocks of weights whose rounding errors make up for each other: GPTQ (arXiv 2210.17323), in numpy.

Rounding to nearest makes each weight's error small. What matters is the error of the product, and inputs are correlated: once
a weight is rounded, those not yet rounded can be moved so that the product stays near what it was. How much follows from
the inputs' second moments, seen on some text. Inputs are gone through in their order, so that the blocks of the operator,
which are neighbours, get their scales from weights as they are when their turn comes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bento_kv.contract.quantization import BlockWeights, pack
from bento_kv.errors import ExportError
from bento_kv.export.quantize import Grid, block_grid

Floats = NDArray[np.float32]
Moments = NDArray[np.float64]

# Of the mean second moment, added to all: inputs that the text left idle must not divide by zero.
_DAMPING = 0.01
# Inputs after which the weights behind are corrected, in one product; at least a block, which gets its scales at once.
_PANEL = 128


def quantize_compensating(
    weight: Floats, moments: Moments, *, bits: int, block_size: int, symmetric: bool = True
) -> BlockWeights:
    """Quantize for com.microsoft::MatMulNBits; see `quantize_blocks` for the arguments that it has too.

    Args:
        weight: float32 `[N, K]`.
        moments: of the inputs, `[K, K]`: the mean of `x xᵀ`.

    Raises:
        ExportError: the weight or the moments are not finite.
    """
    if not (np.isfinite(weight).all() and np.isfinite(moments).all()):
        raise ExportError("a weight, or what it is multiplied with, is not finite and cannot be quantized")
    rows, columns = weight.shape
    blocks = -(-columns // block_size)
    rest = np.zeros((rows, blocks * block_size), np.float32)  # what is left to be rounded, corrected as it goes
    rest[:, :columns] = weight
    correction = _correction(moments)
    values = np.zeros((rows, blocks * block_size), np.uint8)
    grids: list[Grid] = []
    panel = max(_PANEL, block_size)
    for first in range(0, columns, panel):
        last = min(first + panel, columns)
        errors = np.zeros((rows, last - first), np.float32)
        for at in range(first, last):
            if at % block_size == 0:
                grids.append(block_grid(rest[:, at : at + block_size], bits, symmetric=symmetric))
            values[:, at], rounded = grids[-1].round(rest[:, at])
            error = (rest[:, at] - rounded) / correction[at, at]
            rest[:, at:last] -= error[:, None] * correction[at, at:last]
            errors[:, at - first] = error
        rest[:, last:columns] -= errors @ correction[first:last, last:]
    for block, grid in enumerate(grids):  # what fills up the last block stands for zeros
        values[:, max(columns, block * block_size) : (block + 1) * block_size] = grid.zero[:, None]
    scales = np.stack([grid.scale for grid in grids], axis=1)
    zeros = None if symmetric else pack(np.stack([grid.zero for grid in grids], axis=1), bits)
    packed = pack(values.reshape(rows, blocks, block_size), bits)
    return BlockWeights(packed, scales, zeros, bits, block_size, columns)


def _correction(moments: Moments) -> Floats:
    """Upper triangle `[K, K]`: its rows say how an input's rounding error is spread over those behind it."""
    damped = moments.copy()
    diagonal = np.einsum("ii->i", damped)
    diagonal += max(_DAMPING * float(diagonal.mean()), np.finfo(np.float32).tiny)
    inverse = np.linalg.inv(damped)
    upper: Floats = np.linalg.cholesky((inverse + inverse.T) / 2).T.astype(np.float32)
    return upper

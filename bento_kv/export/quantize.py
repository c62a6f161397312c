"""Float weights to 4 and 8 bits, as arrays: no graph, no calibration data.

Rounding to nearest spreads the steps of a block over its range, so that its largest value makes all steps coarse. `search`
tries steps somewhat narrower and wider than that, computes for each the scale that fits the rounded values best, by
least squares, and keeps the best of all, rounding to nearest among them. Source of the idea: the quantizers of
llama.cpp (ggml-quants.c, `make_qx_quants`), where it serves the k-quants.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bento_kv.contract.quantization import FULL_RANGE, REDUCED_RANGE, BlockWeights, ColumnWeights, pack
from bento_kv.errors import ExportError

Method = Literal["rtn", "search"]
Floats = NDArray[np.float32]

BITS = (4, 8)
BLOCK_SIZES = (16, 32, 64, 128, 256)

# What is tried besides rounding to nearest: the range of a block in so many steps more or fewer.
_DEVIATIONS = (-2.0, -1.5, -1.0, -0.5, 0.5, 1.0)
_REFINEMENTS = 2
# Values that are worked on at once, by one thread: temporary arrays stay in a core's own cache.
_PIECE = 1 << 16
_LEAST = np.float32(1e-30)  # a block of smaller magnitudes is taken for zeros: the reciprocal would overflow
_NOT_FINITE = "a weight is not finite and cannot be quantized; export with --precision fp32 to see what it does"


def quantize_blocks(
    weight: Floats, *, bits: int, block_size: int, symmetric: bool = True, method: Method = "rtn"
) -> BlockWeights:
    """Quantize for com.microsoft::MatMulNBits.

    Args:
        weight: float32 `[N, K]`, as torch's Linear has it.
        bits: 4 or 8.
        block_size: values along K that share a scale: 16, 32, 64, 128 or 256.
        symmetric: without zero points. A scale may be negative then: the largest magnitude, whatever its sign, is given
            the end of the range that reaches farther.
        method: `rtn` rounds to nearest; `search` also looks for the scale, see the module.

    Raises:
        ExportError: a weight is not finite, or the arguments are none of those.
    """
    if bits not in BITS or block_size not in BLOCK_SIZES:
        raise ExportError(
            f"{bits} bits in blocks of {block_size}: bits are one of {BITS}, and block sizes of {BLOCK_SIZES}"
        )
    rows, columns = weight.shape
    blocks = -(-columns // block_size)
    packed = np.empty((rows, blocks, block_size * bits // 8), np.uint8)
    scales = np.empty((rows, blocks), np.float32)
    zero_points = None if symmetric else np.empty((rows, -(-blocks * bits // 8)), np.uint8)

    def work(first: int, last: int) -> None:
        piece = np.zeros((last - first, blocks * block_size), np.float32)
        piece[:, :columns] = weight[first:last]
        if not np.isfinite(piece).all():
            raise ExportError(_NOT_FINITE)
        quantizer = _Blocks(piece.reshape(-1, block_size), bits, symmetric=symmetric)
        values, scale, zeros = quantizer.search() if method == "search" else quantizer.nearest()
        packed[first:last] = pack(values.reshape(last - first, blocks, block_size), bits)
        scales[first:last] = scale.reshape(last - first, blocks)
        if zero_points is not None:
            zero_points[first:last] = pack(zeros.reshape(last - first, blocks), bits)

    _in_pieces(rows, _PIECE // (blocks * block_size), work)
    return BlockWeights(packed, scales, zero_points, bits, block_size, columns)


def quantize_columns(weight: Floats, *, reduce_range: bool = False) -> ColumnWeights:
    """Quantize to int8 with one scale for every output, for MatMulInteger, rounding to nearest.

    Args:
        weight: float32 `[N, K]`, as torch's Linear has it.
        reduce_range: use 7 of the 8 bits, see `quantization.REDUCED_RANGE`.

    Raises:
        ExportError: a weight is not finite.
    """
    rows, columns = weight.shape
    top = REDUCED_RANGE if reduce_range else FULL_RANGE
    values = np.empty((rows, columns), np.int8)
    scales = np.empty(rows, np.float32)

    def work(first: int, last: int) -> None:
        piece = weight[first:last]
        largest = np.abs(piece).max(axis=1)
        if not np.isfinite(largest).all():
            raise ExportError(_NOT_FINITE)
        values[first:last] = np.rint(piece * _divided(float(top), largest)[:, None])
        scales[first:last] = largest / top

    _in_pieces(rows, _PIECE // columns, work)
    return ColumnWeights(np.ascontiguousarray(values.T), scales)


@dataclass(frozen=True, slots=True)
class Grid:
    """The values that one block of each row can take.

    Attributes:
        scale: `[N]`; negative where the largest magnitude is.
        zero: `[N]`, what stands for 0.
        top: the largest that is stored.
    """

    scale: Floats
    zero: NDArray[np.uint8]
    top: int

    def round(self, values: Floats) -> tuple[NDArray[np.uint8], Floats]:
        """What is stored for values `[N]`, and what that stands for."""
        stored = np.clip(np.rint(values * _divided(1.0, self.scale)) + self.zero, 0, self.top)
        return stored.astype(np.uint8), (stored - self.zero) * self.scale


def block_grid(block: Floats, bits: int, *, symmetric: bool) -> Grid:
    """The grid on which one block of each row, `[N, block_size]`, has the least squared error found."""
    _, scale, zero = _Blocks(block, bits, symmetric=symmetric).search()
    return Grid(scale, zero, 2**bits - 1)


class _Blocks:
    """Blocks to quantize, side by side: `[block_size, n]`, so that one operation does many of them.

    A value x becomes `clip(round(x * inverse) + zero)` and stands for `(that - zero) / inverse`, or for the same times a
    better scale. Zero points are integers, held as floats.
    """

    def __init__(self, blocks: Floats, bits: int, *, symmetric: bool) -> None:
        self._values = np.ascontiguousarray(blocks.T)
        self._rounded = np.empty_like(self._values)
        self._top = 2.0**bits - 1
        self._middle = 2.0 ** (bits - 1)
        self._symmetric = symmetric
        smallest, largest = self._values.min(axis=0), self._values.max(axis=0)
        if symmetric:
            self._span = np.where(-smallest > largest, smallest, largest)
        else:
            # With zero in the range, so that the zero point is in it.
            self._smallest = np.minimum(smallest, 0)
            self._span = np.maximum(largest, 0) - self._smallest

    def nearest(self) -> tuple[NDArray[np.uint8], Floats, NDArray[np.uint8]]:
        """Rounded to nearest: values `[n, block_size]`, scales `[n]`, zero points `[n]`."""
        inverse, zero = self._grid(0.0)
        self._round(inverse, zero)
        return self._result(_divided(1.0, inverse), zero)

    def search(self) -> tuple[NDArray[np.uint8], Floats, NDArray[np.uint8]]:
        """With the least squared error found: values `[n, block_size]`, scales `[n]`, zero points `[n]`."""
        inverse, zero = self._grid(0.0)
        self._round(inverse, zero)
        most, _ = self._fit()
        for deviation in _DEVIATIONS:
            grid = self._grid(deviation)
            self._round(*grid)
            explained, _ = self._fit()
            better = explained > most
            for best, tried in zip((most, inverse, zero), (explained, *grid), strict=True):
                np.copyto(best, tried, where=better)
        self._round(inverse, zero)
        _, scale = self._fit()
        for _ in range(_REFINEMENTS):
            self._round(_divided(1.0, scale), zero)
            _, scale = self._fit()
        return self._result(scale, zero)

    def _grid(self, deviation: float) -> tuple[Floats, Floats]:
        """The inverse of the step `[n]`, and the zero point `[n]`, if the range has so many steps more than usual."""
        if self._symmetric:
            return _divided(-(self._middle + deviation), self._span), np.full_like(self._span, self._middle)
        inverse = _divided(self._top + deviation, self._span)
        return inverse, np.clip(np.rint(-self._smallest * inverse), 0, self._top)

    def _round(self, inverse: Floats, zero: Floats) -> None:
        """Fills `_rounded` with quantized values less the zero point."""
        np.multiply(self._values, inverse, out=self._rounded)
        np.rint(self._rounded, out=self._rounded)
        np.clip(self._rounded, -zero, self._top - zero, out=self._rounded)

    def _fit(self) -> tuple[Floats, Floats]:
        """Of the rounded values: how much of the blocks' square they explain, and the scale that does it: `[n]` each."""
        along = np.einsum("ij,ij->j", self._values, self._rounded)
        square = np.einsum("ij,ij->j", self._rounded, self._rounded)
        scale = _divided(along, square)
        return along * scale, scale

    def _result(self, scale: Floats, zero: Floats) -> tuple[NDArray[np.uint8], Floats, NDArray[np.uint8]]:
        np.add(self._rounded, zero, out=self._rounded)
        return np.ascontiguousarray(self._rounded.astype(np.uint8).T), scale, zero.astype(np.uint8)


def _divided(numerator: float | Floats, denominator: Floats) -> Floats:
    """The quotient, 0 where the denominator is as good as 0."""
    out: Floats = np.zeros_like(denominator)
    np.divide(numerator, denominator, out=out, where=np.abs(denominator) > _LEAST)
    return out


def _in_pieces(rows: int, size: int, work: Callable[[int, int], None]) -> None:
    """`work(first, last)` over all rows, `size` at a time and at least one; threads compute side by side in numpy."""
    step = max(1, size)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(lambda first: work(first, min(first + step, rows)), range(0, rows, step)):
            pass  # an error of a piece is raised here

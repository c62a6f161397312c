"""What quantized weights are and stand for: arrays as the runtime's operators store them, and the way back to floats.

Shared by the export, which makes them, and the proof, which must not believe the export: a leaf, numpy only. A weight is
`[out_features, in_features]` here, as torch's Linear has it; K is in_features, N is out_features, as in the operators'
documentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

# The largest magnitude of an int8 weight in columns: of all 8 bits, or of a range reduced to 7. Processors without VNNI
# add the products of two uint8 activations and two weights in 16 bits, where 2 * 255 * 127 does not fit and 2 * 255 * 64 does.
FULL_RANGE = 127
REDUCED_RANGE = 64


@dataclass(frozen=True, slots=True)
class BlockWeights:
    """Weights as com.microsoft::MatMulNBits stores them: blocks along K that share a scale.

    A value is `(q - zero_point) * scale`; without zero points theirs is the middle of the range, `2 ** (bits - 1)`.
    Source: onnxruntime, docs/ContribOperators.md.

    Attributes:
        packed: `[N, blocks, block_size * bits / 8]`; of two 4-bit values in a byte the first is in the low half.
        scales: `[N, blocks]`.
        zero_points: `[N, ceil(blocks * bits / 8)]`, packed along the blocks in the same way; None if symmetric.
        bits: 4 or 8.
        block_size: values that share a scale; the last block of a row is filled up with zeros.
        in_features: K.
    """

    packed: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.uint8] | None
    bits: int
    block_size: int
    in_features: int

    @property
    def out_features(self) -> int:
        return int(self.packed.shape[0])

    @property
    def nbytes(self) -> int:
        """Of all arrays together."""
        zero_points = 0 if self.zero_points is None else self.zero_points.nbytes
        return self.packed.nbytes + self.scales.nbytes + zero_points

    def rows(self, first: int, last: int) -> BlockWeights:
        """The outputs `[first, last)`, as views: large weights are looked at in pieces."""
        return BlockWeights(
            packed=self.packed[first:last],
            scales=self.scales[first:last],
            zero_points=None if self.zero_points is None else self.zero_points[first:last],
            bits=self.bits,
            block_size=self.block_size,
            in_features=self.in_features,
        )

    def dequantize(self) -> NDArray[np.float32]:
        """The floats that the operator computes with: `[N, K]`."""
        rows, blocks = self.scales.shape
        values = unpack(self.packed, self.bits).astype(np.float32)  # [N, blocks, block_size]
        if self.zero_points is None:
            values -= 2 ** (self.bits - 1)
        else:
            values -= unpack(self.zero_points, self.bits)[:, :blocks, None]
        values *= self.scales[:, :, None]
        floats: NDArray[np.float32] = values.reshape(rows, -1)[:, : self.in_features]
        return floats


def side_by_side(parts: Sequence[BlockWeights]) -> BlockWeights:
    """One weight with the outputs of several, in their order. All have the same bits, blocks and inputs."""
    first = parts[0]
    zeros = [part.zero_points for part in parts if part.zero_points is not None]
    return replace(
        first,
        packed=np.concatenate([part.packed for part in parts]),
        scales=np.concatenate([part.scales for part in parts]),
        zero_points=np.concatenate(zeros) if zeros else None,
    )


@dataclass(frozen=True, slots=True)
class ColumnWeights:
    """Weights as MatMulInteger takes them: one scale for every output.

    Attributes:
        values: int8 `[K, N]`, within `FULL_RANGE` or `REDUCED_RANGE`.
        scales: `[N]`; a float is `values * scales`.
    """

    values: NDArray[np.int8]
    scales: NDArray[np.float32]

    def rows(self, first: int, last: int) -> ColumnWeights:
        """The outputs `[first, last)`, as views."""
        return ColumnWeights(self.values[:, first:last], self.scales[first:last])

    def dequantize(self) -> NDArray[np.float32]:
        """The floats that the values stand for: `[N, K]`."""
        floats: NDArray[np.float32] = self.values.T * self.scales[:, None]
        return floats


def pack(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Values below `2 ** bits`, side by side along the last axis: `[..., n]` to `[..., ceil(n * bits / 8)]`."""
    if bits == 8:
        return values
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros_like(values[..., :1])], axis=-1)
    return np.bitwise_or(values[..., 0::2], np.left_shift(values[..., 1::2], 4), dtype=np.uint8)


def unpack(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """The way back: `[..., bytes]` to `[..., bytes * 8 / bits]`; an odd number of values comes back with one more."""
    if bits == 8:
        return packed
    values = np.empty((*packed.shape[:-1], 2 * packed.shape[-1]), np.uint8)
    values[..., 0::2] = packed & 0x0F
    values[..., 1::2] = packed >> 4
    return values

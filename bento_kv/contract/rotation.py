"""Rotations that are folded into weights before they are quantized: which, and the arithmetic, for both who make and who prove.

A rotation of the residual stream changes no result, since a root-mean-square norm does not see it, and spreads the few
channels that are huge over all of them, so that one scale a token serves all. Sources: QuaRot (arXiv 2404.00456) and SpinQuant
(arXiv 2405.16406). A leaf: numpy and pydantic only.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from bento_kv.contract.record import Record

Floats = NDArray[np.float32]
_SEED = 0


class Rotated(Record):
    """How a weight that is quantized follows from a parameter of the source, `[out_features, in_features]`.

    Attributes:
        parameter: of the source.
        gain: parameter whose values, `gain_offset` added, multiply the inputs before all else: a norm's, folded in.
        gain_offset: 1 where a norm's parameter is stored as its difference from 1.
        inputs: size of the rotation along the inputs, repeated as often as it fits; 0 where they are not rotated.
        outputs: the same along the outputs.
    """

    parameter: str
    gain: str | None = None
    gain_offset: float = 0.0
    inputs: int = 0
    outputs: int = 0

    def apply(self, weight: Floats, gain: Floats | None) -> Floats:
        """The weight that is quantized, from the parameter and the norm's, both as the source has them.

        Args:
            weight: `[out_features, in_features]`.
            gain: `[in_features]`, if `gain` names one.
        """
        made = weight if gain is None else weight * (gain + np.float32(self.gain_offset))
        if self.inputs:
            made = rotate(made, self.inputs)
        if self.outputs:
            made = np.ascontiguousarray(rotate(np.ascontiguousarray(made.T), self.outputs).T)
        return made


def rotate(values: Floats, size: int) -> Floats:
    """Values `[..., n]` turned along the last axis, in pieces of `size`, by `rotation(size)`; computed in float64."""
    signs, rest, power = _factors(size)
    pieces = values.reshape(-1, len(rest), len(power)) * signs
    turned: Floats = (rest.T @ (pieces @ power)).astype(np.float32).reshape(values.shape)
    return turned


@cache
def rotation(size: int) -> NDArray[np.float64]:
    """An orthogonal matrix `[size, size]` whose elements are as alike in magnitude as can be.

    Sylvester's Hadamard matrix for the largest power of two in `size`, times (Kronecker) a random orthogonal matrix for what
    is left, its rows' signs drawn at random; always the same for a size.
    """
    signs, rest, power = _factors(size)
    matrix: NDArray[np.float64] = np.kron(rest, power) * signs.reshape(-1, 1)
    return matrix


@cache
def _factors(size: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The signs `[r, p]`, the matrix for what is left `[r, r]` and Hadamard's `[p, p]`, `size` being `r * p`."""
    rng = np.random.default_rng(_SEED)
    length = size & -size
    power = np.ones((1, 1))
    while len(power) < length:
        power = np.block([[power, power], [power, -power]])
    power /= np.sqrt(length)
    left = size // length
    rest = np.linalg.qr(rng.standard_normal((left, left)))[0] if left > 1 else np.ones((1, 1))
    return rng.choice([-1.0, 1.0], size).reshape(left, length), rest, power

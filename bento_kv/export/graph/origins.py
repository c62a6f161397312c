"""Which parameters of the torch model a weight of the graph is made of.

torch's exporter transposes weights and names them anew, and passes put several into one. The proof of a quantized decoder
compares each with what it was made from, so the manifest has to say what that is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from bento_kv.contract.rotation import Rotated

Key = tuple[tuple[int, ...], float, float]


class Origins:
    """Finds parameters by content.

    Args:
        parameters: matrices and vectors of the torch model by name.

    Attributes:
        rotations: how weights that were rotated follow from parameters, by the name that stands for them in the pieces.
    """

    def __init__(self, parameters: Mapping[str, NDArray[np.float32]]) -> None:
        self._parameters = {name: array for name, array in parameters.items() if array.ndim == 2}
        self._vectors = {name: array for name, array in parameters.items() if array.ndim == 1}
        self.rotations: dict[str, Rotated] = {}
        self._names: dict[Key, list[str]] = {}
        for name, array in self._parameters.items():
            self._names.setdefault(_key(array), []).append(name)
        self._merged: dict[str, tuple[str, ...]] = {}

    def of(self, name: str, weight: NDArray[np.float32]) -> tuple[str, ...] | None:
        """What a weight `[K, N]` of the graph consists of, along N; None if that is not known.

        A piece is a parameter's name, or `name[first:last]` for some of its outputs.
        """
        if name in self._merged:
            return self._merged[name]
        if name in self.rotations:  # noted under its own name: no need to compare contents
            return (name,)
        found = self._find(weight)
        return None if found is None else (found,)

    def rotated(self, name: str, weight: NDArray[np.float32]) -> Rotated | None:
        """How a whole weight follows from a parameter; None if that is not known."""
        found = self.of(name, weight)
        if found is None or len(found) > 1 or found[0].endswith("]"):
            return None
        return self.rotations.get(found[0]) or Rotated(parameter=found[0])

    def know(self, name: str, weight: NDArray[np.float32], how: Rotated) -> None:
        """Note what a rotated weight `[K, N]`, or a table, was made of; from here on it is found under `name`."""
        self.rotations[name] = how
        self._parameters[name] = weight
        self._names.setdefault(_key(weight), []).append(name)

    def rotations_of(self, weights: Iterable[tuple[str, ...]]) -> dict[str, Rotated]:
        """Those rotations that the pieces of some weights speak of."""
        named = {piece.partition("[")[0] for pieces in weights for piece in pieces}
        return {name: how for name, how in self.rotations.items() if name in named}

    def gain(self, values: NDArray[np.float32]) -> tuple[str, float] | None:
        """The vector that a norm's gain is, and what is added to it."""
        for offset in (0.0, 1.0):
            for name, vector in self._vectors.items():
                if vector.shape == values.shape and np.array_equal(vector + np.float32(offset), values):
                    return name, offset
        return None

    def merge(self, name: str, weights: Sequence[NDArray[np.float32]], order: NDArray[np.int64]) -> None:
        """Note that a weight has the columns of others, laid side by side, in another order."""
        found = [self._find(weight) for weight in weights]
        known = [parameter for parameter in found if parameter is not None]
        if len(known) < len(found):
            return
        starts = np.cumsum([0, *(weight.shape[1] for weight in weights)])
        pieces = []
        for run in np.split(order, np.flatnonzero(np.diff(order) != 1) + 1):
            first, end = int(run[0]), int(run[-1]) + 1
            while first < end:
                owner = int(np.searchsorted(starts, first, side="right")) - 1
                last = min(end, int(starts[owner + 1]))
                whole = last - first == weights[owner].shape[1]
                part = "" if whole else f"[{first - starts[owner]}:{last - starts[owner]}]"
                pieces.append(f"{known[owner]}{part}")
                first = last
        self._merged[name] = tuple(pieces)

    def _find(self, weight: NDArray[np.float32]) -> str | None:
        for name in self._names.get(_key(weight), []):
            parameter = self._parameters[name]
            if any(form.shape == weight.shape and np.array_equal(form, weight) for form in (parameter.T, parameter)):
                return name
        return None


def _key(array: NDArray[np.float32]) -> Key:
    """The same for a matrix and its transpose, and seldom for another."""
    return tuple(sorted(array.shape)), float(array.min(initial=0)), float(array.max(initial=0))

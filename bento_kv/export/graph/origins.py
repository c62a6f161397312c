"""Which parameters of the torch model a weight of the graph is made of.

torch's exporter transposes weights and names them anew, and passes put several into one. The proof of a quantized decoder
compares each with what it was made from, so the manifest has to say what that is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Key = tuple[tuple[int, ...], float, float]


class Origins:
    """Finds parameters by content.

    Args:
        parameters: matrices of the torch model by name.
    """

    def __init__(self, parameters: Mapping[str, NDArray[np.float32]]) -> None:
        self._parameters = parameters
        self._names: dict[Key, list[str]] = {}
        for name, array in parameters.items():
            self._names.setdefault(_key(array), []).append(name)
        self._merged: dict[str, tuple[str, ...]] = {}

    def of(self, name: str, weight: NDArray[np.float32]) -> tuple[str, ...] | None:
        """What a weight `[K, N]` of the graph consists of, along N; None if that is not known.

        A piece is a parameter's name, or `name[first:last]` for some of its outputs.
        """
        if name in self._merged:
            return self._merged[name]
        found = self._find(weight)
        return None if found is None else (found,)

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

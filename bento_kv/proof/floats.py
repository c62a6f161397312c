"""The reference's weights as tensors of a float twin, in one file for all its graphs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import IO

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from bento_kv.contract.reference import WeightReference
from bento_kv.contract.rotation import Rotated
from bento_kv.errors import VerificationError

TWIN_DATA = "twin.onnx.data"
_AT_ONCE = 1 << 22  # elements
_ALIGNMENT = 4096
_PIECE = re.compile(r"(?P<name>.+)\[(?P<first>\d+):(?P<last>\d+)\]")


class NotReducible(Exception):
    """The graph has something that the twin cannot be made of; the message says what."""


class FloatWeights:
    """The reference's weights as the twin's initializers, in one file for all graphs; each is written once."""

    def __init__(
        self,
        sources: Mapping[str, Sequence[str]],
        rotations: Mapping[str, Rotated],
        reference: WeightReference,
        data: IO[bytes],
    ) -> None:
        self._sources = sources
        self._rotations = rotations
        self._last: tuple[str, NDArray[np.float32]] | None = None
        self._reference = reference
        self._data = data
        self._stored: dict[str, TensorProto] = {}
        self.used: set[str] = set()

    def floats(self, name: str) -> NDArray[np.float32]:
        """What a quantized weight was made from: `[N, K]`."""
        if name not in self._sources:
            raise NotReducible(f"the manifest does not say what {name} was made from")
        self.used.add(name)
        try:
            parts = [self._piece(source) for source in self._sources[name]]
        except VerificationError as error:
            raise NotReducible(str(error)) from error
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def _piece(self, source: str) -> NDArray[np.float32]:
        """Outputs of a parameter: all of it, or some as `name[first:last]`."""
        match = _PIECE.fullmatch(source)
        if match is None:
            return self._parameter(source)
        return self._parameter(match["name"])[int(match["first"]) : int(match["last"])]

    def _parameter(self, name: str) -> NDArray[np.float32]:
        """A parameter of the reference, `[N, K]`, rotated if the manifest says so; the last one is kept, as pieces follow."""
        how = self._rotations.get(name)
        if how is None:
            return self._reference.weight(name)
        if self._last is None or self._last[0] != name:
            gain = None if how.gain is None else self._reference.weight(how.gain)
            self._last = name, how.apply(self._reference.weight(how.parameter), gain)
        return self._last[1]

    def store(self, name: str, array: NDArray[np.generic]) -> TensorProto:
        """An initializer of that name with the array behind it; the same one if there is one already."""
        if name in self._stored:
            return self._stored[name]
        self._data.write(bytes(-self._data.tell() % _ALIGNMENT))
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor = TensorProto(name=name, data_type=kind, dims=array.shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", TWIN_DATA), ("offset", self._data.tell()), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        rows = np.atleast_1d(array)
        step = max(1, _AT_ONCE // max(1, rows[:1].size))
        for first in range(0, len(rows), step):  # a large one is not copied as a whole, transposed as it may be
            self._data.write(rows[first : first + step].tobytes())
        self._stored[name] = tensor
        return tensor

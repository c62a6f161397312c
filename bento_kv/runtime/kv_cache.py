"""Keys and values in memory of our own, bound to the graph by pointer as both past and present."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from bento_kv.errors import DecoderError
from bento_kv.manifest import LayerGeometry

# One position more than a slot may use: where a row's last token is repeated, its copy lands there.
SPARE = 1


class InPlaceCache:
    """Buffers `[slots, kv_heads, max_length + 1, head_dim]` by layer and side.

    A step writes keys and values where they stay, so there is nothing to extract, to pass back or to copy. The memory
    is committed page by page when it is first written: an idle slot costs address space only.

    Args:
        layers: geometry by layer.
        slots: rows.
        max_length: positions of a row.
    """

    def __init__(self, layers: Sequence[LayerGeometry], slots: int, max_length: int) -> None:
        self.slots = slots
        self.max_length = max_length
        self.capacity = max_length + SPARE
        try:
            self._buffers: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = [
                (np.zeros(shape, np.float32), np.zeros(shape, np.float32))
                for shape in ((slots, g.kv_heads, self.capacity, g.head_dim) for g in layers)
            ]
        except MemoryError:
            wanted = sum(2 * slots * g.kv_heads * self.capacity * g.head_dim for g in layers) * 4
            raise DecoderError(
                f"a KV cache of {slots} slots and {max_length} positions takes {wanted / 2**30:.1f} GiB, "
                "more than there is; lower slots or max_length"
            ) from None

    @property
    def nbytes(self) -> int:
        """Address space of all buffers, bytes."""
        return sum(key.nbytes + value.nbytes for key, value in self._buffers)

    def bind(self, binding: ort.IOBinding, first: int, last: int) -> None:
        """Bind rows `[first, last)` of every buffer to the graph's past inputs and present outputs."""
        for layer, sides in enumerate(self._buffers):
            for side, buffer in zip(("key", "value"), sides, strict=True):
                view = buffer[first:last]
                memory = ("cpu", 0, view.dtype, view.shape, view.ctypes.data)
                binding.bind_input(f"past_key_values.{layer}.{side}", *memory)
                binding.bind_output(f"present.{layer}.{side}", *memory)

    def read(self, slot: int, length: int) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Copies of a slot's first `length` keys and values by layer, `[kv_heads, length, head_dim]`."""
        return [(key[slot, :, :length].copy(), value[slot, :, :length].copy()) for key, value in self._buffers]

"""Keys and values in memory of our own, bound to the graph by pointer as both past and present."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from bento_kv.contract.graph_io import SIDES, past_name, present_name
from bento_kv.contract.manifest import LayerGeometry
from bento_kv.errors import DecoderError


class InPlaceCache:
    """Buffers `[slots, kv_heads, max_length + spare, head_dim]` by layer and side.

    A step writes keys and values where they stay, so there is nothing to extract, to pass back or to copy. The memory
    is committed page by page when it is first written: an idle slot costs address space only.

    Args:
        layers: geometry by layer.
        slots: rows.
        max_length: positions of a row.
        dtype: of an element, as the graph declares it.
        spare: positions beyond those, where steps leave copies that nothing reads.
    """

    def __init__(
        self,
        layers: Sequence[LayerGeometry],
        slots: int,
        max_length: int,
        dtype: type[np.generic] = np.float32,
        *,
        spare: int = 1,
    ) -> None:
        self.slots = slots
        self.max_length = max_length
        self.capacity = max_length + spare
        try:
            self._buffers: list[tuple[NDArray[Any], NDArray[Any]]] = [
                (zeros(shape, dtype), zeros(shape, dtype))
                for shape in ((slots, g.kv_heads, self.capacity, g.head_dim) for g in layers)
            ]
        except (MemoryError, OSError, OverflowError):
            wanted = sum(2 * slots * g.kv_heads * self.capacity * g.head_dim for g in layers) * np.dtype(dtype).itemsize
            raise DecoderError(
                f"a KV cache of {slots} slots and {max_length} positions takes {wanted / 2**30:.1f} GiB, "
                "more than there is; lower slots or max_length"
            ) from None

    @property
    def nbytes(self) -> int:
        """Address space of all buffers, bytes."""
        return sum(key.nbytes + value.nbytes for key, value in self._buffers)

    @property
    def token_bytes(self) -> int:
        """Bytes of one position of one slot, all layers."""
        return self.nbytes // (self.slots * self.capacity)

    def bind(self, binding: ort.IOBinding, first: int, last: int) -> None:
        """Bind rows `[first, last)` of every buffer to the graph's past inputs and present outputs."""
        for layer, sides in enumerate(self._buffers):
            for side, buffer in zip(SIDES, sides, strict=True):
                view = buffer[first:last]
                memory = ("cpu", 0, view.dtype, view.shape, view.ctypes.data)
                binding.bind_input(past_name(layer, side), *memory)
                binding.bind_output(present_name(layer, side), *memory)

    def write(self, slot: int, cache: Sequence[tuple[NDArray[np.generic], NDArray[np.generic]]]) -> None:
        """Put keys and values by layer, `[kv_heads, length, head_dim]`, at the slot's first positions."""
        for (key, value), (new_key, new_value) in zip(self._buffers, cache, strict=True):
            key[slot, :, : new_key.shape[1]] = new_key
            value[slot, :, : new_value.shape[1]] = new_value

    def read(self, slot: int, length: int) -> list[tuple[NDArray[Any], NDArray[Any]]]:
        """Copies of a slot's first `length` keys and values by layer, `[kv_heads, length, head_dim]`."""
        return [(key[slot, :, :length].copy(), value[slot, :, :length].copy()) for key, value in self._buffers]

    def copy(self, source: int, target: int, length: int) -> None:
        """Write a slot's first `length` positions into another slot."""
        for buffer in self._sides():
            buffer[target, :, :length] = buffer[source, :, :length]

    def save(self, slot: int, length: int) -> list[NDArray[np.generic]]:
        """Copies of a slot's first `length` positions by layer and side, `[kv_heads, length, head_dim]`."""
        return [buffer[slot, :, :length].copy() for buffer in self._sides()]

    def restore(self, slot: int, saved: Sequence[NDArray[np.generic]], length: int) -> None:
        """Write the first `length` positions of what was saved into a slot."""
        for buffer, kept in zip(self._sides(), saved, strict=True):
            buffer[slot, :, :length] = kept[:, :length]

    def release(self, slot: int, length: int) -> None:
        """Give the memory of a slot's positions from `length` on back to the system, whole pages of it."""
        for buffer in self._sides():
            if length == 0:
                _discard(buffer[slot])  # the heads lie side by side
            else:
                for rows in buffer[slot, :, length:]:
                    _discard(rows)

    def _sides(self) -> Iterator[NDArray[np.generic]]:
        """The buffers, layer by layer, keys before values."""
        for sides in self._buffers:
            yield from sides


def zeros(shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
    """Zeros whose memory is committed a small page at a time.

    numpy asks for huge pages, and each head of each slot has a page of its own: the first token of a slot of a 135M model
    with 8192 positions would commit 300 MB and take a second.
    """
    memory = mmap.mmap(-1, max(1, math.prod(shape)) * np.dtype(dtype).itemsize)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype, math.prod(shape)).reshape(shape)


def _discard(part: NDArray[np.generic]) -> None:
    """Let the system take back the pages that a contiguous part of an array of `zeros` has to itself."""
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    memory = part.base
    while isinstance(memory, np.ndarray):
        memory = memory.base
    assert isinstance(memory, memoryview)
    assert isinstance(memory.obj, mmap.mmap)
    begin = part.ctypes.data - np.frombuffer(memory, np.uint8).ctypes.data
    first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (begin + part.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if first < last:
        memory.obj.madvise(mmap.MADV_DONTNEED, first, last - first)

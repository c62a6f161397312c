"""Keys and values in memory of our own, bound to the graph by pointer as both past and present."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from bento_kv.contract.cache import CacheBuffer, CacheSpec, cache_buffers
from bento_kv.contract.graph_io import MAX_LENGTH
from bento_kv.errors import DecoderError


class InPlaceCache:
    """Buffers `[slots, ...]` as the specs of the layers say, their positions `max_length + padding`.

    A step writes keys and values where they stay, so there is nothing to extract, to pass back or to copy. The memory
    is committed page by page when it is first written: an idle slot costs address space only.

    Args:
        layers: what each of them keeps.
        slots: rows.
        max_length: positions of a row.
        dtype: of an element, as the graph declares it.
        padding: positions beyond those, where steps leave copies that nothing reads.
    """

    def __init__(
        self,
        layers: Sequence[CacheSpec],
        slots: int,
        max_length: int,
        dtype: type[np.generic] = np.float32,
        *,
        padding: int = 1,
    ) -> None:
        self.slots = slots
        self.max_length = max_length
        self.capacity = max_length + padding
        self._buffers = cache_buffers(layers)
        shapes = [(slots, *buffer.shape(self.capacity)) for buffer in self._buffers]
        try:
            self._arrays = [zeros(shape, dtype) for shape in shapes]
        except (MemoryError, OSError, OverflowError):
            wanted = sum(map(math.prod, shapes)) * np.dtype(dtype).itemsize
            raise DecoderError(
                f"a KV cache of {slots} slots and {max_length} positions takes {wanted / 2**30:.1f} GiB, "
                "more than there is; lower slots or max_length"
            ) from None

    @property
    def nbytes(self) -> int:
        """Address space of all buffers, bytes."""
        return sum(array.nbytes for array in self._arrays)

    @property
    def token_bytes(self) -> int:
        """Bytes of one position of one slot, all layers."""
        return sum(b.token_elements * a.itemsize for b, a in zip(self._buffers, self._arrays, strict=True))

    def bind(self, binding: ort.IOBinding, first: int, last: int) -> None:
        """Bind rows `[first, last)` of every buffer to the graph's past inputs and present outputs."""
        for buffer, array in zip(self._buffers, self._arrays, strict=True):
            view = array[first:last]
            memory = ("cpu", 0, view.dtype, view.shape, view.ctypes.data)
            binding.bind_input(buffer.before, *memory)
            binding.bind_output(buffer.after, *memory)

    def write(self, slot: int, cache: Sequence[tuple[NDArray[np.generic], NDArray[np.generic]]]) -> None:
        """Put keys and values by layer, `[kv_heads, length, head_dim]`, at the slot's first positions."""
        self.restore(slot, [side for layer in cache for side in layer], cache[0][0].shape[1] if cache else 0)

    def read(self, slot: int, length: int) -> list[tuple[NDArray[Any], NDArray[Any]]]:
        """Copies of a slot's first `length` keys and values by layer, `[kv_heads, length, head_dim]`."""
        sides = self.save(slot, length)
        return list(zip(sides[0::2], sides[1::2], strict=True))

    def copy(self, source: int, target: int, length: int) -> None:
        """Write a slot's first `length` positions into another slot."""
        for to, of in zip(self._held(target, length), self._held(source, length), strict=True):
            to[...] = of

    def save(self, slot: int, length: int) -> list[NDArray[Any]]:
        """Copies of a slot's first `length` positions, buffer by buffer: `[kv_heads, length, head_dim]` of keys."""
        return [part.copy() for part in self._held(slot, length)]

    def restore(self, slot: int, saved: Sequence[NDArray[np.generic]], length: int) -> None:
        """Write the first `length` positions of what was saved into a slot."""
        for to, buffer, kept in zip(self._held(slot, length), self._buffers, saved, strict=True):
            to[...] = kept[_positions(buffer, slice(length))]

    def release(self, slot: int, length: int) -> None:
        """Give the memory of a slot's positions from `length` on back to the system, whole pages of it."""
        for buffer, array in zip(self._buffers, self._arrays, strict=True):
            if length == 0:
                _discard(array[slot])  # all of a slot lies side by side
            elif MAX_LENGTH in buffer.axes:
                rest = array[slot][_positions(buffer, slice(length, None))]
                along = buffer.axes.index(MAX_LENGTH)
                for place in np.ndindex(rest.shape[:along]):
                    _discard(rest[place])

    def _held(self, slot: int, length: int) -> Iterator[NDArray[Any]]:
        """Views of a slot's first `length` positions, buffer by buffer; of a state, all of it."""
        for buffer, array in zip(self._buffers, self._arrays, strict=True):
            yield array[slot][_positions(buffer, slice(length))]


def _positions(buffer: CacheBuffer, positions: slice) -> tuple[slice, ...]:
    """An index of one slot's array: these positions, where it has positions, and all of every other axis."""
    return tuple(positions if axis == MAX_LENGTH else slice(None) for axis in buffer.axes)


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

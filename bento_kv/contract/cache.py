"""What a decoder keeps of a sequence, layer by layer: a spec for each layer, told apart by its `kind`.

A spec says which buffers a slot has, and that is all that graphs, proof and runtime ask of it: a buffer knows the names it
has in the graph and its axes. Where one of them is `MAX_LENGTH`, positions lie along it, and the first n of them are a
cache of n tokens by themselves: they can be copied, saved and continued from. A buffer without it is a state, whose size
does not depend on how many tokens it is of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bento_kv.contract.graph_io import MAX_LENGTH, ROWS, SIDES, TensorSpec, past_name, present_name
from bento_kv.contract.record import Record


@dataclass(frozen=True, slots=True)
class CacheBuffer:
    """One tensor of a layer's cache.

    Attributes:
        before, after: names of the input that it is read from and of the output that continues it.
        axes: of one slot.
    """

    before: str
    after: str
    axes: tuple[int | str, ...]

    def shape(self, positions: int) -> tuple[int, ...]:
        """Of one slot with room for so many positions."""
        return tuple(size if isinstance(size, int) else positions for size in self.axes)

    @property
    def token_elements(self) -> int:
        """Elements of one position of one slot."""
        return math.prod(self.shape(1)) if MAX_LENGTH in self.axes else 0

    def tensors(self, dtype: str) -> tuple[TensorSpec, TensorSpec]:
        """The input and the output, as an in-place graph declares them."""
        shape = (ROWS, *self.axes)
        before, after = (TensorSpec(name=name, dtype=dtype, shape=shape) for name in (self.before, self.after))
        return before, after


class KvSpec(Record):
    """Keys and values of every position, `[slots, kv_heads, max_length, head_dim]` each."""

    kind: Literal["kv"] = "kv"
    kv_heads: int
    head_dim: int

    def buffers(self, layer: int) -> tuple[CacheBuffer, ...]:
        """The buffers of a layer with this number, in the order of the graph."""
        axes = (self.kv_heads, MAX_LENGTH, self.head_dim)
        return tuple(CacheBuffer(past_name(layer, side), present_name(layer, side), axes) for side in SIDES)


# Other kinds join here, as a union that pydantic tells apart by `kind`.
CacheSpec = KvSpec


def cache_buffers(layers: Sequence[CacheSpec]) -> list[CacheBuffer]:
    """All buffers of a decoder's cache, in the order of its graph."""
    return [buffer for layer, spec in enumerate(layers) for buffer in spec.buffers(layer)]

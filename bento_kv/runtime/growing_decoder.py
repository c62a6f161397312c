"""A decoder with a growing cache behind the same step as the in-place one: every slot has arrays of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bento_kv.contract.plan import Exactness, StepPlan, StepRow
from bento_kv.errors import DecoderError
from bento_kv.runtime.graph import Cache, CachedGraph, cache_length
from bento_kv.runtime.plans import check_plan


class GrowingCache:
    """One request's arrays a slot, `[1, kv_heads, length, head_dim]` by layer and side, as the graph returned them.

    Args:
        empty: a cache of length 0.
        slots: rows.
    """

    def __init__(self, empty: Cache, slots: int) -> None:
        self._empty = empty
        self._slots: dict[int, Cache] = {}
        self.slots = slots

    def held(self, slot: int) -> int:
        """Positions that a slot has keys and values of."""
        return cache_length(self._slots[slot]) if slot in self._slots else 0

    def past(self, slot: int, length: int) -> Cache:
        """The slot's first `length` positions, to be fed."""
        if length == 0:
            return self._empty
        cache = self._slots[slot]
        return cache if cache_length(cache) == length else [(k[:, :, :length], v[:, :, :length]) for k, v in cache]

    def keep(self, slot: int, present: Cache) -> None:
        """Take what a step returned."""
        self._slots[slot] = present

    @property
    def token_bytes(self) -> int:
        """Bytes of one position of one slot, all layers."""
        return sum(side.itemsize * side.shape[1] * side.shape[3] for layer in self._empty for side in layer)

    def release(self, slot: int, length: int) -> None:
        """Forget the slot's positions from `length` on."""
        if length == 0:
            self._slots.pop(slot, None)
        elif self.held(slot) > length:
            self.keep(slot, [(k[:, :, :length].copy(), v[:, :, :length].copy()) for k, v in self._slots[slot]])

    def read(self, slot: int, length: int) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Copies of a slot's first `length` keys and values by layer, `[kv_heads, length, head_dim]`."""
        return [(k[0].astype(np.float32), v[0].astype(np.float32)) for k, v in self.past(slot, length)]


class GrowingDecoder:
    """Other people's graph, driven a row at a time.

    A row is computed alone, so that its bits do not depend on its neighbours; a step with several rows takes as long as
    several steps.

    Args:
        graph: whose cache grows.
        slots: rows.
        max_length: positions of a row.
        vocab_size: of the logits.

    Attributes:
        exact: `batch`, since cached and uncached are not of the same bits in a graph that was not made for it.
    """

    exact: Exactness = "batch"
    chunk_exact = False
    tokens_in_pairs = False
    draft_exact = False

    def __init__(self, graph: CachedGraph, *, slots: int, max_length: int, vocab_size: int) -> None:
        self._graph = graph
        self.takes_positions = graph.takes_positions
        self.slots = slots
        self.max_length = max_length
        self.vocab_size = vocab_size
        self.cache = GrowingCache(graph.empty_cache(1), slots)

    def step(self, plan: StepPlan, *, position_offset: int = 0) -> NDArray[np.float32]:
        """Compute the plan's tokens and keep their keys and values.

        Args:
            plan: what to compute.
            position_offset: added to the tokens' positions, where the graph takes positions.

        Returns:
            Logits `[sum(row.logits for row in plan.rows), vocab_size]`, in the order of the rows.

        Raises:
            DecoderError: the plan does not fit, the runtime failed, or the graph does not give what is wanted.
        """
        check_plan(plan, self.slots, self.max_length, self.cache.held)
        if position_offset and not self._graph.takes_positions:
            raise DecoderError("the graph computes its positions itself: they take no offset")
        return np.concatenate([self._row(row, position_offset) for row in plan.rows])

    def copy(self, source: int, target: int, length: int) -> None:
        """Make the first `length` positions of a slot those of another; arrays are never written, so both have them."""
        self.cache.keep(target, self.cache.past(source, length))

    def save(self, slot: int, length: int) -> Cache:
        """A slot's first `length` positions."""
        return self.cache.past(slot, length)

    def restore(self, slot: int, saved: Cache, length: int) -> None:
        """Make the first `length` positions of what was saved those of a slot."""
        self.cache.keep(slot, [(k[:, :, :length], v[:, :, :length]) for k, v in saved])

    def release(self, slot: int, length: int) -> None:
        """Give the memory of a slot's positions from `length` on back."""
        self.cache.release(slot, length)

    def _row(self, row: StepRow, position_offset: int) -> NDArray[np.float32]:
        """One row's logits, `[row.logits, vocab_size]`."""
        logits: list[NDArray[np.float32]] = []
        past, start = self.cache.past(row.slot, row.start), row.start
        for tokens in self._parts(row):
            ids = np.array([tokens], np.int64)
            positions = np.arange(start, start + len(tokens))[None] + position_offset if position_offset else None
            output = self._graph.run(ids, past, positions=positions)
            past, start = output.present, start + len(tokens)
            if cache_length(past) != start:
                raise DecoderError(f"the graph returned a cache of {cache_length(past)} positions instead of {start}")
            logits.append(output.logits[0])
        self.cache.keep(row.slot, past)
        every = np.concatenate(logits)
        if len(every) < row.logits:
            raise DecoderError(f"{row.logits} logits are wanted, and the graph gives its last token's only")
        return every[len(every) - row.logits :]

    def _parts(self, row: StepRow) -> list[Sequence[int]]:
        """A row's tokens as the graph takes them in."""
        if self._graph.one_token_steps and row.start:
            return [[token] for token in row.tokens]
        return [row.tokens]

"""What the engine and the proof need of a model, whatever runs it: one step, and a cache by slots. Step 0 is not special."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bento_kv.contract.plan import Exactness, StepPlan

SavedCache = Any  # what a decoder's `save` returns, for its `restore`


class CacheReader(Protocol):
    """What can be seen of a cache.

    Attributes:
        token_bytes: of one position of one slot, all layers.
    """

    @property
    def token_bytes(self) -> int: ...

    def read(self, slot: int, length: int) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Copies of a slot's first `length` keys and values by layer, `[kv_heads, length, head_dim]`."""
        ...


class Decoder(Protocol):
    """A decoder, loaded. Nothing outside the runtime knows the layout of its cache.

    Attributes:
        chunk_exact: a prompt's bits do not depend on the chunks, of two tokens or more, that it is computed in.
        takes_positions: `step` takes a `position_offset`.
        tokens_in_pairs: a step computes tokens two by two, an odd one with a copy of it: a draft in the copy's place costs little.
        draft_exact: a row's bits are the same with and without drafts behind its token.
        exact: how far equality goes.
        slots: rows of the cache.
        max_length: positions of a slot.
        vocab_size: token ids are below it.
        cache: to look at.
    """

    @property
    def chunk_exact(self) -> bool: ...

    @property
    def takes_positions(self) -> bool: ...

    @property
    def tokens_in_pairs(self) -> bool: ...

    @property
    def draft_exact(self) -> bool: ...

    @property
    def exact(self) -> Exactness: ...

    @property
    def slots(self) -> int: ...

    @property
    def max_length(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def cache(self) -> CacheReader: ...

    def step(self, plan: StepPlan, *, position_offset: int = 0) -> NDArray[np.float32]:
        """Compute the plan's tokens and write their keys and values.

        Args:
            plan: what to compute.
            position_offset: added to the tokens' position ids, not to their places in the cache. The proof reaches far
                positions by it, without computing all that would stand before them.

        Returns:
            Logits `[sum(row.logits for row in plan.rows), vocab_size]`, in the order of the rows.

        Raises:
            DecoderError: the plan does not fit the cache, or the runtime failed.
        """
        ...

    def copy(self, source: int, target: int, length: int) -> None:
        """Make the first `length` positions of a slot those of another."""
        ...

    def save(self, slot: int, length: int) -> SavedCache:
        """A copy of a slot's first `length` positions. MemoryError if there is no room for it."""
        ...

    def restore(self, slot: int, saved: SavedCache, length: int) -> None:
        """Make the first `length` positions of a copy those of a slot."""
        ...

    def release(self, slot: int, length: int) -> None:
        """Give the memory of a slot's positions from `length` on back; they will not be read before they are written."""
        ...

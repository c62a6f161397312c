"""A decoder graph as one function, whatever its layout: tokens and a past go in, logits and a present come out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

# By layer: keys and values, each [rows, kv_heads, length, head_dim], in the graph's own element type. Graphs that store
# them otherwise (stacked, transposed, in place) are fed and read through this form.
Cache = list[tuple[NDArray[np.generic], NDArray[np.generic]]]


@dataclass(frozen=True, slots=True)
class GraphOutput:
    """Of one run.

    Attributes:
        logits: `[rows, tokens, vocab_size]`; `[rows, 1, vocab_size]` where the graph gives the last token's only.
        present: the cache after it, `[rows, kv_heads, past + tokens, head_dim]` where the graph is right.
    """

    logits: NDArray[np.float32]
    present: Cache


class CachedGraph(Protocol):
    """What the diagnosis drives.

    Attributes:
        takes_mask: the graph has an attention mask to set.
        takes_positions: the graph has position ids to set.
        one_token_steps: behind a past it takes one token at a time, because another graph, or a branch of its own,
            takes the prompt.
    """

    takes_mask: bool
    takes_positions: bool
    one_token_steps: bool

    def empty_cache(self, rows: int) -> Cache:
        """A past of length 0."""
        ...

    def run(
        self,
        ids: NDArray[np.int64],
        past: Cache,
        *,
        mask: NDArray[np.int64] | None = None,
        positions: NDArray[np.int64] | None = None,
    ) -> GraphOutput:
        """One step.

        Args:
            ids: `[rows, tokens]`.
            past: of all rows, of one length.
            mask: `[rows, past + tokens]`, 1 for what may be seen; all of it unless given.
            positions: `[rows, tokens]`; those behind the past unless given.

        Raises:
            DecoderError: the runtime refuses, or fails.
        """
        ...


def cache_length(cache: Cache) -> int:
    """Positions that a cache holds."""
    return cache[0][0].shape[2] if cache else 0

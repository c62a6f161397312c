"""A small decoder in numpy that depends on past, positions and mask, for tests of loops."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bento_kv.errors import DecoderError
from bento_kv.runtime.graph import Cache, GraphOutput, cache_length

LAYERS, HEADS, DIM, VOCAB, POSITIONS = 3, 2, 8, 50, 256


class ToyDecoder:
    """Attention over learned positions; weights are random.

    Args:
        takes_mask: an attention mask is an input.
        takes_positions: position ids are an input; else they follow from the past's length.
    """

    def __init__(self, *, takes_mask: bool = True, takes_positions: bool = True, seed: int = 0) -> None:
        self.takes_mask = takes_mask
        self.takes_positions = takes_positions
        self.one_token_steps = False
        random = np.random.default_rng(seed)
        width = HEADS * DIM

        def weight(*shape: int) -> NDArray[np.float32]:
            return random.normal(0, 1, shape).astype(np.float32)

        self.tokens, self.places, self.head = weight(VOCAB, width), weight(POSITIONS, width), weight(width, VOCAB)
        self.layers = [[weight(width, width) / 3 for _ in range(4)] for _ in range(LAYERS)]

    def empty_cache(self, rows: int) -> Cache:
        empty = np.zeros((rows, HEADS, 0, DIM), np.float32)
        return [(empty, empty) for _ in range(LAYERS)]

    def run(
        self,
        ids: NDArray[np.int64],
        past: Cache,
        *,
        mask: NDArray[np.int64] | None = None,
        positions: NDArray[np.int64] | None = None,
    ) -> GraphOutput:
        assert mask is None or self.takes_mask
        assert positions is None or self.takes_positions
        rows, count = ids.shape
        held = cache_length(past)
        places = np.arange(held, held + count)[None] if positions is None else positions
        seen = np.arange(held + count) <= np.arange(held, held + count)[:, None]
        allowed = np.broadcast_to(seen, (rows, 1, count, held + count))
        if mask is not None:
            if mask.shape[1] not in (1, held + count):
                raise DecoderError("the mask cannot be broadcast over past and tokens")
            allowed = allowed & (mask[:, None, None, :] > 0)
        hidden = self.tokens[ids] + self.places[places]
        present: Cache = []
        for (query, key, value, out), (old_keys, old_values) in zip(self.layers, past, strict=True):
            normed = hidden / np.sqrt((hidden**2).mean(-1, keepdims=True) + 1e-6)
            q, k, v = (self._heads(normed @ w) for w in (query, key, value))
            k, v = np.concatenate((old_keys, k), axis=2), np.concatenate((old_values, v), axis=2)
            present.append((k, v))
            scores = np.where(allowed, q @ k.swapaxes(2, 3) / np.sqrt(DIM), np.float32(-1e9))
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            mixed = (weights / weights.sum(-1, keepdims=True)) @ v
            hidden = hidden + mixed.swapaxes(1, 2).reshape(rows, count, -1) @ out * 3
        return GraphOutput((hidden @ self.head).astype(np.float32), present)

    @staticmethod
    def _heads(flat: NDArray[np.float32]) -> NDArray[np.float32]:
        return flat.reshape(*flat.shape[:2], HEADS, DIM).swapaxes(1, 2)

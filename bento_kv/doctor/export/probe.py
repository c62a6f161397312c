"""Runs of one decoder on made-up tokens, and what they are compared by."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bento_kv.contract.checks import scaled_error
from bento_kv.errors import DecoderError
from bento_kv.runtime.graph import Cache, CachedGraph, GraphOutput, cache_length

REEXPORT = (
    "Export again: `bento-kv repair FILE -o REPAIRED --reference SOURCE`, or `bento-kv export SOURCE` for the layout that has "
    "no cache to pass on."
)
LENGTH = 12


class Probe:
    """A graph, tokens to run it on, and the same tokens computed at once without a past.

    Args:
        graph: to drive.
        vocab_size: token ids are below it.
        limit: what an error may be, relative to the largest value.
        chunk: several tokens may go in behind a past.
    """

    def __init__(self, graph: CachedGraph, vocab_size: int, limit: float, *, chunk: bool) -> None:
        self.graph = graph
        self.vocab_size = vocab_size
        self.limit = limit
        self.chunk = chunk
        self.ids = self.tokens(0, 1)
        self.full = self.uncached(self.ids)
        self._steps: dict[tuple[int, int], GraphOutput] = {}

    def tokens(self, seed: int, rows: int, length: int = LENGTH) -> NDArray[np.int64]:
        """Random ids `[rows, length]`, no two neighbours alike."""
        return made_up(seed, self.vocab_size, rows, length)

    def uncached(
        self,
        ids: NDArray[np.int64],
        *,
        mask: NDArray[np.int64] | None = None,
        positions: NDArray[np.int64] | None = None,
    ) -> GraphOutput:
        """All tokens at once behind an empty past; logits of every token, also where the graph gives the last one's."""
        rows, n = ids.shape

        def run(end: int) -> GraphOutput:
            return self.graph.run(
                ids[:, :end],
                self.graph.empty_cache(rows),
                mask=None if mask is None else mask[:, :end],
                positions=None if positions is None else positions[:, :end],
            )

        whole = run(n)
        if whole.logits.shape[1] == n:
            return whole
        logits = np.concatenate([run(end).logits[:, -1:] for end in range(1, n)] + [whole.logits[:, -1:]], axis=1)
        return GraphOutput(logits, whole.present)

    def past(self, length: int) -> Cache:
        """The first positions of what the uncached run left: a right past, whatever the graph does with one."""
        return cut(self.full.present, length)

    def step(self, held: int, n: int) -> GraphOutput:
        """The tokens from `held` on, behind the past that the uncached run left."""
        if (held, n) not in self._steps:
            self._steps[held, n] = self.graph.run(self.ids[:, held : held + n], self.past(held))
        return self._steps[held, n]

    def error(self, got: NDArray[np.generic], expected: NDArray[np.generic]) -> float:
        """Largest difference over the largest expected value; infinite for other shapes and for what is no number."""
        return relative_error(np.asarray(got, np.float32), np.asarray(expected, np.float32))

    def differ(self, got: NDArray[np.generic], expected: NDArray[np.generic]) -> bool:
        """Whether a change of the inputs changed the output: by more than another order of summation does."""
        return not self.error(got, expected) <= 1e-6


def made_up(seed: int, vocab_size: int, rows: int, length: int) -> NDArray[np.int64]:
    """Random ids `[rows, length]`, no two neighbours alike."""
    ids = np.random.default_rng(seed).integers(0, vocab_size, (rows, length))
    return np.where(ids == np.roll(ids, 1, axis=1), (ids + 1) % vocab_size, ids)


def relative_error(got: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """As `scaled_error`, without its floor of 1: a small model's logits are small, and its faults with them."""
    largest = float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0))
    if largest == 0.0 or largest >= 1.0:
        return scaled_error(got, expected)
    return scaled_error(got / np.float32(largest), expected / np.float32(largest))


def keeps_last(probe: Probe) -> bool:
    """Whether the cache stops growing at a few positions, as one that slides does, whatever is in it."""
    kept = cache_length(probe.full.present)
    if not 0 < kept < LENGTH:
        return False
    try:
        return cache_length(probe.uncached(probe.ids[:, : kept + 1]).present) == kept
    except DecoderError:
        return False


def cut(cache: Cache, length: int) -> Cache:
    """The first `length` positions."""
    return [(key[:, :, :length], value[:, :, :length]) for key, value in cache]


def altered(cache: Cache, change: Callable[[NDArray[np.generic]], NDArray[np.generic]]) -> Cache:
    """Every key and value array changed."""
    return [(change(key), change(value)) for key, value in cache]


def noise(array: NDArray[np.generic], seed: int) -> NDArray[np.generic]:
    """Of the same shape and type, told apart from every other layer's and side's; exact in half precision too."""
    return np.random.default_rng(seed).standard_normal(array.shape).astype(np.float16).astype(array.dtype)

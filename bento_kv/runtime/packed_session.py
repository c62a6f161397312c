"""A session of the packed layout over a cache: the cache is bound once, and a run binds only what changes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from bento_kv.contract.graph_io import (
    GROUP_BIAS,
    GROUPED,
    INPUT_IDS,
    LOGITS,
    LOGITS_INDEX,
    POSITION_IDS,
    SEQLENS_K,
)
from bento_kv.contract.plan import StepRow
from bento_kv.errors import DecoderError, first_line
from bento_kv.runtime.group_bias import GroupBias
from bento_kv.runtime.kv_cache import InPlaceCache
from bento_kv.runtime.packed import packed_feeds

_SWITCH = {on: np.array(on) for on in (False, True)}
_UNHELD = 2  # references to a buffer that nobody but its owner holds: the owner's and the question's


class PackedSession:
    """Runs one graph.

    Args:
        session: of the graph.
        cache: that it reads and writes.
        vocab_size: width of the logits.
        bias: of a graph that takes query heads as queries of one head; None for others.
        tokens_in_pairs: give it an even number of tokens; see `PrecisionTraits`.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        cache: InPlaceCache,
        vocab_size: int,
        bias: GroupBias | None,
        *,
        tokens_in_pairs: bool,
    ) -> None:
        self._tokens_in_pairs = tokens_in_pairs
        self._session = session
        self._cache = cache
        self._vocab_size = vocab_size
        self._bias = bias
        self._bindings: dict[tuple[int, int], ort.IOBinding] = {}
        self._steady: _Steady | None = None  # the last run's inputs, if the next run may be like it
        self._logits = np.empty(0, np.float32)

    def run(
        self, rows: Sequence[StepRow], queries: Sequence[int], position_offset: int = 0, *, grouped: bool = False
    ) -> NDArray[np.float32]:
        """Logits `[sum(row.logits for row in rows), vocab_size]`, in the order of the rows.

        Args:
            rows: of the step.
            queries, position_offset: see `packed_feeds`.
            grouped: take the query heads that share keys as queries of one head; each row is of one token.

        Raises:
            DecoderError: the runtime failed.
        """
        slots, starts = np.array([row.slot for row in rows]), np.array([row.start for row in rows])
        first, last = int(slots.min()), int(slots.max()) + 1
        binding = self._binding(first, last)
        feeds = self._feeds(binding, rows, queries, slots, starts, position_offset, grouped=grouped)
        if self._bias is not None and grouped:
            self._bias.newest(slots, starts)
        logits = self._buffer(len(feeds[LOGITS_INDEX]))
        binding.bind_output(LOGITS, "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise DecoderError(f"the runtime failed in a step: {first_line(error)}") from error
        return logits[: sum(row.logits for row in rows)]

    def _feeds(
        self,
        binding: ort.IOBinding,
        rows: Sequence[StepRow],
        queries: Sequence[int],
        slots: NDArray[np.int64],
        starts: NDArray[np.int64],
        position_offset: int,
        *,
        grouped: bool,
    ) -> dict[str, NDArray[np.generic]]:
        """The inputs, bound. They have to live until the run is done, as a binding borrows the arrays' memory.

        Decoding goes on with the same rows for many steps: then the last run's arrays are changed where they stand.
        """
        alike = position_offset == 0 and all(len(row.tokens) == row.logits == 1 for row in rows)
        if alike and self._steady is not None and self._steady.fits(binding, slots, queries):
            self._steady.go_on(rows, starts)
            return self._steady.feeds
        first, last = int(slots.min()), int(slots.max()) + 1
        feeds = packed_feeds(
            rows, queries, first, last, self._cache.capacity, position_offset, tokens_in_pairs=self._tokens_in_pairs
        )
        if self._bias is not None:
            feeds[GROUPED] = _SWITCH[grouped]
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        self._steady = _Steady(binding, slots, list(queries), feeds) if alike else None
        return feeds

    def _binding(self, first: int, last: int) -> ort.IOBinding:
        """The binding of a range of slots, made once: the cache's buffers never move."""
        if (first, last) not in self._bindings:
            binding = self._session.io_binding()
            self._cache.bind(binding, first, last)
            if self._bias is not None:
                binding.bind_cpu_input(GROUP_BIAS, self._bias.array[first:last])
            self._bindings[first, last] = binding
        return self._bindings[first, last]

    def _buffer(self, rows: int) -> NDArray[np.float32]:
        """Room for logits `[rows, vocab_size]`: the last step's again, unless somebody still holds those.

        Fresh memory is committed page by page, which for a large vocabulary takes as long as computing some layers.
        """
        size = rows * self._vocab_size
        if len(self._logits) < size or sys.getrefcount(self._logits) > _UNHELD:
            self._logits = np.empty(size, np.float32)
        return self._logits[:size].reshape(rows, self._vocab_size)


@dataclass(slots=True)
class _Steady:
    """The inputs of a run of one token a row, as bound, for the next run of the same rows."""

    binding: ort.IOBinding
    slots: NDArray[np.int64]
    queries: list[int]
    feeds: dict[str, Any]

    def fits(self, binding: ort.IOBinding, slots: NDArray[np.int64], queries: Sequence[int]) -> bool:
        return binding is self.binding and np.array_equal(slots, self.slots) and self.queries == queries

    def go_on(self, rows: Sequence[StepRow], starts: NDArray[np.int64]) -> None:
        """Change what differs from the last run, in place."""
        ids, positions = self.feeds[INPUT_IDS], self.feeds[POSITION_IDS]
        ids[: len(rows)] = [row.tokens[0] for row in rows]
        positions[: len(rows)] = starts
        if len(ids) > len(rows):  # there is one more, to make their number even
            ids[-1], positions[-1] = ids[-2], positions[-2]
        self.feeds[SEQLENS_K][self.slots - self.slots.min()] = starts + self.queries[0] - 1

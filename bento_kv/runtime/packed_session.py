"""A session of the packed layout over a cache: the cache is bound once, and a run binds only what changes."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from bento_kv.errors import DecoderError, first_line
from bento_kv.plan import StepRow
from bento_kv.runtime.kv_cache import InPlaceCache
from bento_kv.runtime.packed import packed_feeds

_UNHELD = 2  # references to a buffer that nobody but its owner holds: the owner's and the question's


class PackedSession:
    """Runs one graph.

    Args:
        session: of the graph.
        cache: that it reads and writes.
        vocab_size: width of the logits.
        even: give it an even number of tokens, whose results then do not depend on their number. The operator on blocks
            of weights takes tokens two by two, and one that is left alone by other arithmetic.
    """

    def __init__(self, session: ort.InferenceSession, cache: InPlaceCache, vocab_size: int, *, even: bool) -> None:
        self._even = even
        self._session = session
        self._cache = cache
        self._vocab_size = vocab_size
        self._bindings: dict[tuple[int, int], ort.IOBinding] = {}
        self._logits = np.empty(0, np.float32)

    def run(self, rows: Sequence[StepRow], queries: Sequence[int], displaced: int = 0) -> NDArray[np.float32]:
        """Logits `[sum(row.logits for row in rows), vocab_size]`, in the order of the rows.

        Args:
            rows: of the step.
            queries, displaced: see `packed_feeds`.

        Raises:
            DecoderError: the runtime failed.
        """
        first, last = min(row.slot for row in rows), max(row.slot for row in rows) + 1
        binding = self._binding(first, last)
        # Named, because a binding borrows the arrays' memory.
        feeds = packed_feeds(rows, queries, first, last, self._cache.capacity, displaced, even=self._even)
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        logits = self._buffer(len(feeds["logits_index"]))
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise DecoderError(f"the runtime failed in a step: {first_line(error)}") from error
        return logits[: sum(row.logits for row in rows)]

    def _binding(self, first: int, last: int) -> ort.IOBinding:
        """The binding of a range of slots, made once: the cache's buffers never move."""
        if (first, last) not in self._bindings:
            binding = self._session.io_binding()
            self._cache.bind(binding, first, last)
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

"""One step of an in-place decoder. There is no other kind of step, though two graphs may share the work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bento_kv.contract.manifest import Manifest
from bento_kv.contract.plan import Exactness, StepPlan, StepRow
from bento_kv.contract.precision import CACHE_ELEMENTS
from bento_kv.errors import DecoderError, ManifestError
from bento_kv.host import available_cpus
from bento_kv.runtime.group_bias import GroupBias
from bento_kv.runtime.kv_cache import InPlaceCache
from bento_kv.runtime.packed_session import PackedSession
from bento_kv.runtime.plans import check_plan
from bento_kv.runtime.session import open_session

# Query heads that share keys, from which on grouping them is faster than the kernel for single queries.
_LARGE_GROUP = 5


class OnnxDecoder:
    """A decoder directory, loaded: one session or two, a cache, and `step`.

    Where there are two graphs, prompts go through the first and what continues them through the second, whatever the
    load: which graph computes a token follows from the request alone.

    Args:
        directory: holds `manifest.json` and the graph.
        slots: rows of the cache.
        max_length: positions of a row; the manifest's unless set.
        exact: in mode `full` rows of one token meet the same arithmetic as all others, so that any split of a sequence
            into steps gives the same bits; in mode `batch` they may take a faster way of their own.
        threads: of a step; as many as this process has CPUs unless set.
        providers: execution providers; the CPU's unless set.

    Raises:
        ManifestError: the directory is not a decoder, or not one of this layout.
        DecoderError: the runtime refuses the graph, or the cache does not fit in memory.
    """

    chunk_exact = True
    takes_positions = True

    def __init__(
        self,
        directory: Path,
        *,
        slots: int,
        max_length: int | None = None,
        exact: Exactness = "batch",
        threads: int | None = None,
        providers: Sequence[str] | None = None,
    ) -> None:
        self.manifest = Manifest.read(directory)
        if self.manifest.layout != "in-place":
            raise ManifestError(f"{directory} has the {self.manifest.layout} layout; this decoder takes in-place only")
        vocab_size = self.manifest.vocab_size
        length = max_length or self.manifest.max_length
        if length > self.manifest.max_length:
            raise DecoderError(
                f"max_length {length} is more than the {self.manifest.max_length} positions that {directory} was "
                "exported for"
            )
        self.exact = exact
        dtype = CACHE_ELEMENTS[self.manifest.kv_cache].numpy
        self.cache = InPlaceCache(self.manifest.layers, slots, length, dtype, padding=self.manifest.padding)
        bias = GroupBias(slots, self.manifest.group, self.cache.capacity) if self.manifest.group > 1 else None
        self._grouped = self._groups(threads or available_cpus())
        # In mode `full` one graph computes everything, since another's weights would give other bits.
        files = self.manifest.graphs if exact == "batch" else self.manifest.graphs[-1:]
        graphs = [
            PackedSession(
                open_session(
                    directory / file,
                    threads=threads,
                    providers=providers,
                    reduce_range=self.manifest.reduce_range,
                ),
                self.cache,
                vocab_size,
                bias,
                tokens_in_pairs=self.manifest.traits.tokens_in_pairs,
            )
            for file in files
        ]
        self._prompts, self._continuations = graphs[0], graphs[-1]
        # How far each slot was ever written: reading beyond would mean keys that nobody computed.
        self._written = [0] * slots

    @property
    def slots(self) -> int:
        return self.cache.slots

    @property
    def max_length(self) -> int:
        return self.cache.max_length

    @property
    def vocab_size(self) -> int:
        return self.manifest.vocab_size

    @property
    def tokens_in_pairs(self) -> bool:
        return self.manifest.traits.tokens_in_pairs

    @property
    def draft_exact(self) -> bool:
        # A row of one token has one query in mode `batch`, unless its heads are grouped, and with drafts it has several.
        return self.exact == "full" or self._grouped

    def step(self, plan: StepPlan, *, position_offset: int = 0) -> NDArray[np.float32]:
        """Compute the plan's tokens and write their keys and values.

        Args:
            plan: what to compute.
            position_offset: added to the tokens' positions, not to their places in the cache. The proof reaches far
                positions by it, without computing all that would stand before them.

        Returns:
            Logits `[sum(row.logits for row in plan.rows), vocab_size]`, in the order of the rows.

        Raises:
            DecoderError: the plan does not fit the cache, or the runtime failed.
        """
        check_plan(plan, self.slots, self.max_length, self._written.__getitem__)
        runs = self._runs(plan.rows)
        if len(runs) == 1:
            return self._run(plan.rows, position_offset)
        by_slot: dict[int, NDArray[np.float32]] = {}
        for rows in runs:
            ends = np.cumsum([row.logits for row in rows])[:-1]
            by_slot.update(
                zip((row.slot for row in rows), np.split(self._run(rows, position_offset), ends), strict=True)
            )
        return np.concatenate([by_slot[row.slot] for row in plan.rows])

    def copy(self, source: int, target: int, length: int) -> None:
        """Make the first `length` positions of a slot those of another."""
        self.cache.copy(source, target, length)
        self._written[target] = length

    def save(self, slot: int, length: int) -> list[NDArray[np.generic]]:
        """A copy of a slot's first `length` positions; see `InPlaceCache.save`."""
        return self.cache.save(slot, length)

    def restore(self, slot: int, saved: Sequence[NDArray[np.generic]], length: int) -> None:
        """Make the first `length` positions of a copy those of a slot."""
        self.cache.restore(slot, saved, length)
        self._written[slot] = length

    def release(self, slot: int, length: int) -> None:
        """Give the memory of a slot's positions from `length` on back."""
        self.cache.release(slot, length)
        self._written[slot] = min(self._written[slot], length)

    def _runs(self, rows: Sequence[StepRow]) -> list[list[StepRow]]:
        """The plan's rows, in one run of a graph if possible.

        In mode `batch`, rows that continue and rows of prompts meet different graphs, perhaps, and those of one token
        another form of the attention than others: none of them may share a run. And the operator pads every row to the
        widest one and wants the padding to fit behind the row's past, though it writes nothing there: a row near its
        slot's end cannot be in one run with a much wider one.
        """
        runs: list[list[StepRow]] = []
        for row in sorted(rows, key=self._queries, reverse=True):
            for run in runs:
                if self._kind(row) == self._kind(run[0]) and row.start + self._queries(run[0]) <= self.cache.capacity:
                    run.append(row)
                    break
            else:
                runs.append([row])
        return runs

    def _kind(self, row: StepRow) -> tuple[bool, bool]:
        return row.decodes and self.exact == "batch", self._queries(row) == 1

    def _run(self, rows: Sequence[StepRow], position_offset: int) -> NDArray[np.float32]:
        """One run of a graph: logits `[sum(row.logits for row in rows), vocab_size]`, in the order of the rows."""
        graph = self._continuations if rows[0].decodes else self._prompts
        queries = [self._queries(row) for row in rows]
        logits = graph.run(rows, queries, position_offset, grouped=self._grouped and queries[0] == 1)
        for row in rows:
            self._written[row.slot] = max(self._written[row.slot], row.start + len(row.tokens))
        return logits

    def _queries(self, row: StepRow) -> int:
        """Queries that a row is given: an even number, its last token repeated if need be; or one.

        The operator cuts a row's queries into blocks, of an even size, and computes a block of one query by other
        arithmetic. So that a token's result does not depend on where blocks begin, no block may be left with one. A row
        of one token is excepted where its query heads are grouped, which makes them several queries, and in mode
        `batch`, where such rows are always of one query, and so always alike.
        """
        n = len(row.tokens)
        return 1 if n == 1 and (self._grouped or self.exact == "batch") else n + n % 2

    def _groups(self, threads: int) -> bool:
        """Whether rows of one token have their query heads grouped; never by what else is in a step.

        In mode `full` always: the other way is to give the token twice. In mode `batch` the other way is a kernel for
        single queries, which is slower only where many query heads share keys. And grouped, the operator works on a row
        with as many threads as there are heads of keys.
        """
        group, kv_heads = self.manifest.group, max(layer.kv_heads for layer in self.manifest.layers)
        if self.exact == "full":
            return group > 1
        return group >= _LARGE_GROUP and threads <= 2 * kv_heads

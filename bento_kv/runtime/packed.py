"""The in-place layout's graph: tokens packed, and where each of them stands in the operator's rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from bento_kv.contract.cache import KvSpec
from bento_kv.contract.graph_io import (
    GATHER_INDEX,
    GROUP_BIAS,
    GROUPED,
    INPUT_IDS,
    LOGITS,
    LOGITS_INDEX,
    POSITION_IDS,
    QUERY_SEQLENS,
    SCATTER_INDEX,
    SEQLENS_K,
    TOTAL_SEQUENCE_LENGTH,
    TensorSpec,
    past_name,
)
from bento_kv.contract.manifest import padding_positions
from bento_kv.contract.plan import StepRow
from bento_kv.contract.precision import CACHE_ELEMENTS
from bento_kv.errors import DecoderError, first_line
from bento_kv.runtime.graph import Cache, GraphOutput, cache_length
from bento_kv.runtime.kv_cache import InPlaceCache


def packed_feeds(
    rows: Sequence[StepRow],
    queries: Sequence[int],
    first: int,
    last: int,
    capacity: int,
    position_offset: int = 0,
    *,
    tokens_in_pairs: bool = False,
) -> dict[str, NDArray[np.generic]]:
    """The graph's inputs but the cache.

    Args:
        rows: of the step.
        queries: that each row is given: its tokens, the last one once more if need be.
        first, last: the range of slots that is bound, `[first, last)`.
        capacity: positions of a slot's buffer.
        position_offset: added to the tokens' positions, not to their places in the cache.
        tokens_in_pairs: repeat the last token, and the last of the logits, where their number is odd. Nothing attends to the
            copy, and it is not written; its logits come behind the others.
    """
    # By row.
    slots = np.array([row.slot - first for row in rows])
    starts = np.array([row.start for row in rows])
    counts = np.array([len(row.tokens) for row in rows])
    given = np.array(queries)
    ends = np.cumsum(counts)
    width = int(given.max())
    # By token.
    own = np.repeat(np.arange(len(rows)), counts)
    within = np.arange(ends[-1]) - (ends - counts)[own]
    # Cells beyond a row's tokens are padding: any token does.
    gather = np.zeros((last - first, width), np.int64)
    gather[slots[own], within] = np.arange(ends[-1])
    # A repeated token's key and value land one position further, where causality hides them from the row's own
    # queries, and where the next token overwrites them.
    (repeated,) = np.nonzero(given > counts)
    gather[slots[repeated], counts[repeated]] = ends[repeated] - 1
    query_seqlens = np.zeros(last - first, np.int32)  # 0 marks a slot that sits this step out
    query_seqlens[slots] = given
    seqlens_k = np.zeros(last - first, np.int32)
    seqlens_k[slots] = starts + given - 1
    wanted = np.array([row.logits for row in rows])
    asking = np.repeat(np.arange(len(rows)), wanted)
    by_token = {
        INPUT_IDS: np.fromiter(chain.from_iterable(row.tokens for row in rows), np.int64, ends[-1]),
        POSITION_IDS: starts[own] + within + position_offset,
        SCATTER_INDEX: slots[own] * width + within,
        LOGITS_INDEX: np.arange(len(asking)) + (ends - np.cumsum(wanted))[asking],
    }
    if tokens_in_pairs:
        by_token = {name: np.append(array, array[-1:]) if len(array) % 2 else array for name, array in by_token.items()}
    return {
        **by_token,
        GATHER_INDEX: gather,
        SEQLENS_K: seqlens_k,
        QUERY_SEQLENS: query_seqlens,
        TOTAL_SEQUENCE_LENGTH: np.array(capacity, np.int32),
    }


class PackedGraph:
    """A graph of the in-place layout, driven as any other: the past is copied in and the present out.

    Args:
        session: of the graph.
        inputs: as the session declares them.

    Raises:
        DecoderError: its cache inputs do not say how many heads of which size they have, or are of another type than ours.
    """

    takes_mask = False
    takes_positions = True
    one_token_steps = False

    def __init__(self, session: ort.InferenceSession, inputs: Sequence[TensorSpec]) -> None:
        self._session = session
        self._layers: list[KvSpec] = []
        named = {spec.name: spec for spec in inputs}
        self._group = int(named[GROUP_BIAS].shape[2]) if GROUP_BIAS in named else 1
        while (spec := named.get(past_name(len(self._layers), "key"))) is not None:
            heads, dim = (spec.shape[1], spec.shape[3]) if len(spec.shape) == 4 else ("?", "?")
            if not isinstance(heads, int) or not isinstance(dim, int):
                raise DecoderError(f"{spec.name} {list(spec.shape)} does not say its heads and their size")
            self._layers.append(KvSpec(kv_heads=heads, head_dim=dim))
        self._element = _element(named[past_name(0, "key")]) if self._layers else np.float32

    def empty_cache(self, rows: int) -> Cache:
        """A past of length 0: `[rows, kv_heads, 0, head_dim]` by layer and side."""
        shapes = [(rows, layer.kv_heads, 0, layer.head_dim) for layer in self._layers]
        return [(np.zeros(shape, self._element), np.zeros(shape, self._element)) for shape in shapes]

    def run(
        self,
        ids: NDArray[np.int64],
        past: Cache,
        *,
        mask: NDArray[np.int64] | None = None,
        positions: NDArray[np.int64] | None = None,
    ) -> GraphOutput:
        """One step; see `CachedGraph.run`. There is no mask: rows have lengths of their own instead."""
        rows, tokens = ids.shape
        held = cache_length(past)
        queries = tokens + tokens % 2
        cache = InPlaceCache(self._layers, rows, held + tokens, self._element, padding=padding_positions(self._group))
        for row in range(rows):
            cache.write(row, [(key[row], value[row]) for key, value in past])
        plan = [StepRow(row, ids[row].tolist(), held, tokens) for row in range(rows)]
        feeds = packed_feeds(plan, [queries] * rows, 0, rows, cache.capacity)
        if self._group > 1:
            # Steps of several tokens have no use for it.
            feeds |= {
                GROUPED: np.array(False),
                GROUP_BIAS: np.zeros((rows, 1, self._group, cache.capacity), np.float32),
            }
        if positions is not None:
            feeds[POSITION_IDS] = np.ascontiguousarray(positions, np.int64).reshape(-1)
        binding = self._session.io_binding()
        try:
            cache.bind(binding, 0, rows)
            for name, array in feeds.items():
                binding.bind_cpu_input(name, array)
            binding.bind_output(LOGITS, "cpu")
            self._session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise DecoderError(
                f"the runtime failed on {tokens} tokens of {rows} rows with a past of {held}: {first_line(error)}"
            ) from error
        logits = binding.get_outputs()[-1].numpy()  # in the order of binding
        present = [cache.read(row, held + tokens) for row in range(rows)]
        stacked: Cache = [
            (np.stack([row[layer][0] for row in present]), np.stack([row[layer][1] for row in present]))
            for layer in range(len(self._layers))
        ]
        return GraphOutput(logits.reshape(rows, tokens, -1), stacked)


def _element(spec: TensorSpec) -> type[np.generic]:
    """What the graph keeps keys and values as: the stored numbers are what goes in and comes out."""
    for element in CACHE_ELEMENTS.values():
        if element.dtype == spec.dtype:
            return element.numpy
    raise DecoderError(f"{spec.name} is {spec.dtype}, not one of {', '.join(e.dtype for e in CACHE_ELEMENTS.values())}")

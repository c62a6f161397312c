"""The loop by equality: cached against uncached, alone against together, to the last bit. No reference needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from bento_kv.contract.checks import Worst, at_most, difference, scaled_error
from bento_kv.contract.decoder import Decoder
from bento_kv.contract.plan import StepPlan, StepRow
from bento_kv.contract.precision import FP32_LIMIT
from bento_kv.contract.remedies import Remedy
from bento_kv.contract.verification import Check
from bento_kv.proof.effort import WALKS, block_edges

SMALL = (1, 2, 3, 5, 16)
LARGE = (64, 128)
DECODE_STEPS = 32
# Tokens that one size of small chunks is used for before the next size has its turn.
_TURN = 12


def _edges(decoder: Decoder) -> list[int]:
    """Chunks that end one token behind a block of the attention operator."""
    return [edge + 1 for edge in block_edges(keys.shape[-1] for keys, _ in decoder.cache.read(0, 0))]


def _cache(decoder: Decoder, slot: int, length: int) -> list[NDArray[np.float32]]:
    return [side for layer in decoder.cache.read(slot, length) for side in layer]


def check_splits(
    decoder: Decoder,
    ids: Sequence[int],
    walks: int = WALKS,
    rounding: float = FP32_LIMIT,
    *,
    two_graphs: bool = False,
    remedies: Sequence[Remedy] = (),
) -> Check:
    """Law 1: a sequence split into steps in many ways, down to single tokens, against one step over the whole.

    Args:
        decoder: slot 0 is used.
        ids: the sequence.
        walks: ways to split it; together they have chunks of every size.
        rounding: the limit in mode `batch`, where single tokens meet other arithmetic.
        two_graphs: prompts and what continues them go through graphs of different weights. Then each is held to the law by
            itself: chunks of prompts of two tokens or more, and behind a prompt, single tokens and checks of drafts.
        remedies: what may mend it in mode `batch`; in mode `full` nothing does but other kernels.
    """
    worst = Worst()
    splits = split_walks(len(ids), sorted({*LARGE, *_edges(decoder)}), walks)
    if two_graphs:
        prompt = len(ids) // 2
        decoder.step(StepPlan([StepRow(0, ids[:prompt], 0, 0)]))
        behind = split_walks(len(ids) - prompt, sorted({*LARGE, *_edges(decoder)}), walks)
        _see_splits(decoder, ids, prompt, behind, worst)
        splits = [_without_ones(sizes) for sizes in splits]
        met = f"{_sizes(splits)}, and {len(ids) - prompt} behind them into steps of {_sizes(behind)},"
    else:
        met = _sizes(splits)
    _see_splits(decoder, ids, 0, splits, worst)
    text = (
        f"largest difference of {len(splits)} ways to split {len(ids)} tokens into steps of {met} to one step over all"
    )
    limit, known = (0.0, ()) if decoder.exact == "full" else (rounding, remedies)
    return at_most(f"cached-equals-uncached-{decoder.exact}", worst.error, limit, worst.describe(text), known)


def _see_splits(
    decoder: Decoder, ids: Sequence[int], start: int, splits: Sequence[Sequence[int]], worst: Worst
) -> None:
    """Compare logits and cache of tokens from `start` on; from behind a prompt on, chunks are one token and drafts."""
    measure = difference if decoder.exact == "full" else scaled_error

    def step(at: int, size: int) -> NDArray[np.float32]:
        row = StepRow(0, ids[at : at + size], at, size, size - 1 if start else 0)
        return decoder.step(StepPlan([row])).copy()

    expected = step(start, len(ids) - start)
    expected_cache = _cache(decoder, 0, len(ids))
    for number, sizes in enumerate(splits):
        at = start
        for size in sizes:
            error = measure(step(at, size), expected[at - start : at - start + size])
            worst.see(error, f"split {number}, {size} tokens at position {at}")
            at += size
        for index, (got, wanted) in enumerate(zip(_cache(decoder, 0, len(ids)), expected_cache, strict=True)):
            worst.see(measure(got, wanted), f"split {number}, {('keys', 'values')[index % 2]} of layer {index // 2}")


def _without_ones(sizes: Sequence[int]) -> list[int]:
    """The same total, every chunk of one joined to the one before it, or behind it if it is the first."""
    joined: list[int] = []
    for size in sizes:
        if joined and (size == 1 or joined[-1] == 1):
            joined[-1] += size
        else:
            joined.append(size)
    return joined


def _sizes(splits: Sequence[Sequence[int]]) -> str:
    return ", ".join(map(str, sorted({size for sizes in splits for size in sizes})))


def split_walks(total: int, large: Sequence[int], walks: int) -> list[list[int]]:
    """At least so many ways to write `total` as a sum of chunk sizes; every size that fits is met in one of them.

    Each walk takes as many of the large sizes as it has room for, the rest goes to small ones in turns, shuffled.
    """
    rng = np.random.default_rng(0)
    found: list[list[int]] = []
    pending: list[int] = []
    while pending or len(found) < walks:
        pending = pending or sorted((size for size in large if size < total), reverse=True)
        parts: list[list[int]] = []
        for size in list(pending):
            if size <= total - sum(map(sum, parts)):
                parts.append([size])
                pending.remove(size)
        turn = len(found)
        while (left := total - sum(map(sum, parts))) > 0:
            size = min(SMALL[turn % len(SMALL)], left)
            parts.append([size] * max(1, min(_TURN, left) // size))
            turn += 1
        found.append([size for at in rng.permutation(len(parts)) for size in parts[at]])
    return found


def check_neighbours(decoder: Decoder, ids: Sequence[int]) -> Check:
    """Law 2: a prompt and its decode steps alone, against the same in another slot, chunked otherwise, among others.

    Where the bits depend on the chunks, it is chunked alike.

    As the engine plans them, rows of one token and rows of several are never in one step.
    """
    prompt = max(2, 2 * len(ids) // 3, len(ids) - DECODE_STEPS)
    crowd = _Crowd(decoder, slot=decoder.slots // 2)
    chunks = _chunks_of_two_or_more(prompt, _edges(decoder), crowd.rng)
    alone = [_in_chunks(ids, [prompt] if decoder.chunk_exact else chunks, partial(_alone, decoder))]
    for at in range(prompt, len(ids)):
        alone.append(_alone(decoder, ids[at : at + 1], at))
    alone_cache = _cache(decoder, 0, len(ids))
    worst = Worst()
    logits = _in_chunks(ids, chunks, crowd.step)
    worst.see(difference(logits, alone[0]), f"the prompt of {prompt} tokens")
    for at in range(prompt, len(ids)):
        worst.see(difference(crowd.step(ids[at : at + 1], at), alone[at - prompt + 1]), f"position {at}")
    for index, (got, wanted) in enumerate(zip(_cache(decoder, crowd.slot, len(ids)), alone_cache, strict=True)):
        worst.see(difference(got, wanted), f"{('keys', 'values')[index % 2]} of layer {index // 2}")
    text = (
        f"largest difference of {len(ids)} tokens alone to the same among up to {decoder.slots - 1} random neighbours"
    )
    return at_most(f"alone-equals-together-{decoder.exact}", worst.error, 0.0, worst.describe(text))


def _alone(decoder: Decoder, tokens: Sequence[int], start: int) -> NDArray[np.float32]:
    logits: NDArray[np.float32] = decoder.step(StepPlan([StepRow(0, tokens, start)]))[0]
    return logits.copy()


def _in_chunks(
    ids: Sequence[int], sizes: Sequence[int], step: Callable[[Sequence[int], int], NDArray[np.float32]]
) -> NDArray[np.float32]:
    """The last logits of tokens that are computed a chunk a step."""
    at = 0
    for size in sizes:
        logits = step(ids[at : at + size], at)
        at += size
    return logits


def _chunks_of_two_or_more(total: int, edges: Sequence[int], rng: np.random.Generator) -> list[int]:
    sizes: list[int] = []
    while (left := total - sum(sizes)) > 0:
        drawn = int(rng.choice(edges) if rng.random() < 0.5 else rng.integers(2, 40))
        size = min(left, drawn)
        sizes.append(left if left - size == 1 else size)
    return sizes


class _Crowd:
    """One row among random others that come, go on, start over and sit out."""

    def __init__(self, decoder: Decoder, slot: int) -> None:
        self.decoder = decoder
        self.slot = slot
        self.rng = np.random.default_rng(1)
        self._lengths = dict.fromkeys((s for s in range(decoder.slots) if s != slot), 0)

    def step(self, tokens: Sequence[int], start: int) -> NDArray[np.float32]:
        rows = [*self._others(single=len(tokens) == 1), StepRow(self.slot, tokens, start)]
        order = self.rng.permutation(len(rows))
        logits = self.decoder.step(StepPlan([rows[i] for i in order]))
        mine: NDArray[np.float32] = logits[int(np.flatnonzero(order == len(rows) - 1)[0])].copy()
        return mine

    def _others(self, *, single: bool) -> list[StepRow]:
        rows = []
        for slot, length in self._lengths.items():
            if self.rng.random() < 0.3:
                continue
            n = 1 if single else int(self.rng.integers(2, min(30, self.decoder.max_length)))
            if length + n > self.decoder.max_length:
                length = 0
            tokens = self.rng.integers(0, self.decoder.vocab_size, n).tolist()
            rows.append(StepRow(slot, tokens, length))
            self._lengths[slot] = length + n
        return rows

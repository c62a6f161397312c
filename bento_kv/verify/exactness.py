"""The loop layer by equality: cached against uncached, alone against together, to the last bit. No reference needed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bento_kv.manifest import Check
from bento_kv.plan import StepPlan, StepRow
from bento_kv.runtime.decoder import OnnxDecoder
from bento_kv.verify.checks import FP32_LIMIT, Worst, at_most, difference, scaled_error

CHUNKS = (1, 2, 3, 5, 16, 64, 128)


def _edges(decoder: OnnxDecoder) -> list[int]:
    """Chunks that end one token behind a block of the attention operator, which cuts queries by the head's size."""
    sizes = {layer.head_dim for layer in decoder.manifest.layers}
    return sorted({blocks * size + 1 for size in sizes for blocks in (1, 2, 4)})


def uncached(decoder: OnnxDecoder, ids: Sequence[int]) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
    """Logits of every position from one step over the whole, and the keys and values that it left."""
    logits = decoder.step(StepPlan([StepRow(0, ids, 0, len(ids))])).copy()
    return logits, _cache(decoder, 0, len(ids))


def _cache(decoder: OnnxDecoder, slot: int, length: int) -> list[NDArray[np.float32]]:
    return [side for layer in decoder.cache.read(slot, length) for side in layer]


def check_splits(decoder: OnnxDecoder, ids: Sequence[int]) -> Check:
    """Law 1: every split of a sequence into steps, down to single tokens, against one step over the whole."""
    expected, expected_cache = uncached(decoder, ids)
    exact = decoder.exact == "full"
    measure = difference if exact else scaled_error
    rng = np.random.default_rng(0)
    splits = [(f"chunks of {n}", _even(len(ids), n)) for n in (*CHUNKS, *_edges(decoder)) if n < len(ids)]
    splits += [(f"random split {n}", _random(len(ids), rng)) for n in range(2)]
    worst = Worst()
    for name, sizes in splits:
        at = 0
        for size in sizes:
            logits = decoder.step(StepPlan([StepRow(0, ids[at : at + size], at, size)]))
            worst.see(measure(logits, expected[at : at + size]), f"{name}, position {at}")
            at += size
        for index, (got, wanted) in enumerate(zip(_cache(decoder, 0, len(ids)), expected_cache, strict=True)):
            worst.see(measure(got, wanted), f"{name}, {('keys', 'values')[index % 2]} of layer {index // 2}")
    text = f"largest difference of {len(splits)} ways to split {len(ids)} tokens into steps to one step over the whole"
    limit = 0.0 if exact else FP32_LIMIT
    return at_most(f"cached-equals-uncached-{decoder.exact}", worst.error, limit, worst.describe(text))


def _even(total: int, size: int) -> list[int]:
    return [min(size, total - at) for at in range(0, total, size)]


def _random(total: int, rng: np.random.Generator) -> list[int]:
    sizes: list[int] = []
    while (left := total - sum(sizes)) > 0:
        sizes.append(min(left, int(rng.integers(1, 40))))
    return sizes


def check_neighbours(decoder: OnnxDecoder, ids: Sequence[int]) -> Check:
    """Law 2: a prompt and its decode steps alone, against the same in another slot, chunked otherwise, among others.

    As the engine plans them, rows of one token and rows of several are never in one step.
    """
    prompt = max(2, 2 * len(ids) // 3)
    alone = [decoder.step(StepPlan([StepRow(0, ids[:prompt], 0)]))[0].copy()]
    for at in range(prompt, len(ids)):
        alone.append(decoder.step(StepPlan([StepRow(0, ids[at : at + 1], at)]))[0].copy())
    alone_cache = _cache(decoder, 0, len(ids))
    crowd = _Crowd(decoder, slot=decoder.slots // 2)
    worst = Worst()
    at = 0
    for size in _chunks_of_two_or_more(prompt, _edges(decoder), crowd.rng):
        logits = crowd.step(ids[at : at + size], at)
        at += size
    worst.see(difference(logits, alone[0]), f"the prompt of {prompt} tokens")
    for at in range(prompt, len(ids)):
        worst.see(difference(crowd.step(ids[at : at + 1], at), alone[at - prompt + 1]), f"position {at}")
    for index, (got, wanted) in enumerate(zip(_cache(decoder, crowd.slot, len(ids)), alone_cache, strict=True)):
        worst.see(difference(got, wanted), f"{('keys', 'values')[index % 2]} of layer {index // 2}")
    text = (
        f"largest difference of {len(ids)} tokens alone to the same among up to {decoder.slots - 1} random neighbours"
    )
    return at_most(f"alone-equals-together-{decoder.exact}", worst.error, 0.0, worst.describe(text))


def _chunks_of_two_or_more(total: int, edges: Sequence[int], rng: np.random.Generator) -> list[int]:
    sizes: list[int] = []
    while (left := total - sum(sizes)) > 0:
        drawn = int(rng.choice(edges) if rng.random() < 0.5 else rng.integers(2, 40))
        size = min(left, drawn)
        sizes.append(left if left - size == 1 else size)
    return sizes


class _Crowd:
    """One row among random others that come, go on, start over and sit out."""

    def __init__(self, decoder: OnnxDecoder, slot: int) -> None:
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


def check_reuse(decoder: OnnxDecoder, ids: Sequence[int]) -> Check:
    """A slot that held a longer sequence gives the same bits as a fresh one."""
    half = max(2, len(ids) // 2)
    fresh = _run(decoder, decoder.slots - 1, ids[:half])
    _run(decoder, 1, list(reversed(ids)))
    again = _run(decoder, 1, ids[:half])
    text = "largest difference of a sequence in a slot that another one used before to the same in a fresh slot"
    return at_most(f"slot-reuse-{decoder.exact}", difference(again, fresh), 0.0, text)


def _run(decoder: OnnxDecoder, slot: int, ids: Sequence[int]) -> NDArray[np.float32]:
    """A prompt of all but the last three tokens, then those one by one: logits `[4 or fewer, vocab_size]`."""
    prompt = max(1, len(ids) - 3)
    logits = [decoder.step(StepPlan([StepRow(slot, ids[:prompt], 0)]))[0].copy()]
    for at in range(prompt, len(ids)):
        logits.append(decoder.step(StepPlan([StepRow(slot, ids[at : at + 1], at)]))[0].copy())
    return np.stack(logits)

"""Faulty loops to hold a trace against: each does one thing wrong with what a right loop would feed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bento_kv.doctor.faults import LoopFaultId
from bento_kv.doctor.loop.replay import Feeds, Held, Prepare
from bento_kv.runtime.graph import Cache, CachedGraph, cache_length


@dataclass(frozen=True, slots=True)
class FaultyLoop:
    """A loop that is wrong in one way; `does` completes "the loop ...", `fix` is another remedy than its fault's."""

    id: LoopFaultId
    does: str
    prepare: Prepare
    fix: str = ""


def faulty_loops(graph: CachedGraph, *, rows: int, padded: bool) -> Iterator[FaultyLoop]:
    """Those that can show on this graph, the common ones first."""
    if graph.takes_positions:
        yield from _wrong_positions(padded)
    yield from _wrong_pasts(graph)
    yield from _wrong_orders(graph, rows)
    if graph.takes_mask:
        yield from _wrong_masks(padded)


def _wrong_positions(padded: bool) -> Iterator[FaultyLoop]:
    def fault(does: str, positions: Callable[[Held], NDArray[np.int64]]) -> FaultyLoop:
        def prepare(held: Held) -> Feeds:
            return Feeds(held.past, held.mask, positions(held))

        return FaultyLoop("position-not-advanced", does, prepare)

    def column(held: Held, first: int) -> NDArray[np.int64]:
        return np.broadcast_to(np.arange(first, first + held.step.width, dtype=np.int64), held.positions.shape)

    yield fault("starts the positions at 0 again in each step", lambda held: column(held, 0))
    yield fault("is one position behind", lambda held: np.maximum(held.positions - 1, 0))
    yield fault("is one position ahead", lambda held: held.positions + 1)
    yield fault("leaves the position where it was at step 1", lambda held: column(held, cache_length(held.zero)))
    yield fault(
        "leaves the position where the prompt ended", lambda held: column(held, max(cache_length(held.zero) - 1, 0))
    )
    if padded:
        yield fault(
            "counts the padding of the rows in their positions", lambda held: column(held, held.step.past_length)
        )


def _wrong_pasts(graph: CachedGraph) -> Iterator[FaultyLoop]:
    def fault(id: LoopFaultId, does: str, past: Callable[[Held], Cache], *, own: bool, fix: str = "") -> FaultyLoop:
        def prepare(held: Held) -> Feeds:
            cache = past(held)
            length = cache_length(cache)
            mask = None if held.mask is None else held.mask[:, -(length + held.step.width) :]
            shift = held.step.past_length - length if own else 0
            return Feeds(cache, mask, np.maximum(held.positions - shift, 0))

        return FaultyLoop(id, does, prepare, fix)

    empty, switch = "feeds an empty past, whatever length it counts", ""
    if graph.one_token_steps:  # a graph for later steps, or a branch, that a loop may never come to
        empty += ", or never turns `use_cache_branch` on"
        switch = "set `use_cache_branch` to true from step 1 on, and feed the present outputs of each step as the past of the next"
    # A graph that takes positions may be given those of the length that is counted, or of the cache that is fed.
    for own in (False, True) if graph.takes_positions else (False,):
        yield fault("past-not-fed", empty, _nothing, own=own, fix=switch)
        yield fault("past-stale", "feeds the cache of step 0 at every step", lambda held: held.zero, own=own)
        yield fault("past-stale", "feeds the cache of one step too early", lambda held: held.older, own=own)
        yield fault("past-stale", "leaves the last position of the past out", _shorter, own=own)
    yield fault("past-not-fed", "feeds a past of zeros", _zeros, own=False)
    yield fault("past-stale", "feeds a past whose newest position was never written", _unwritten, own=False)


def _nothing(held: Held) -> Cache:
    return [(k[:, :, :0], v[:, :, :0]) for k, v in held.past]


def _shorter(held: Held) -> Cache:
    return [(k[:, :, :-1], v[:, :, :-1]) for k, v in held.past]


def _zeros(held: Held) -> Cache:
    return [(np.zeros_like(k), np.zeros_like(v)) for k, v in held.past]


def _unwritten(held: Held) -> Cache:
    def side(array: NDArray[np.generic]) -> NDArray[np.generic]:
        # Decoded positions are; the prompt's were written.
        copy = array.copy()
        copy[:, :, max(cache_length(held.zero), cache_length(held.past) - 1) :] = 0
        return copy

    return [(side(k), side(v)) for k, v in held.past]


def _wrong_orders(graph: CachedGraph, rows: int) -> Iterator[FaultyLoop]:
    def fault(id: LoopFaultId, does: str, past: Callable[[Cache], Cache], fix: str = "") -> FaultyLoop:
        return FaultyLoop(id, does, lambda held: Feeds(past(held.past), held.mask, held.positions), fix)

    def swapped(does: str, past: Callable[[Cache], Cache]) -> FaultyLoop:
        return fault("layers-swapped", does, past)

    empty = graph.empty_cache(1)
    layers = len(empty)
    alike = len({side.shape for layer in empty for side in layer}) == 1
    if alike:
        yield swapped("feeds keys as values and values as keys", lambda past: [(v, k) for k, v in past])
        yield swapped("feeds all keys first, then all values", _by_side)
    if alike and layers > 1:
        yield swapped("feeds each layer the cache of the one before", lambda past: past[-1:] + past[:-1])
        yield swapped("feeds the layers in reverse", lambda past: past[::-1])
        yield swapped("feeds all layers the cache of layer 0", lambda past: past[:1] * layers)
        yield swapped("exchanges the keys of layers", _keys_rotated)
    if alike and layers > 2:
        yield swapped("feeds each layer the cache of the next one", lambda past: past[1:] + past[:1])
        # Names sorted as text: layer 10 comes before layer 2.
        order = sorted(range(layers), key=str)
        if order != list(range(layers)):
            does = "feeds the layers in the order of their names as text (10 before 2)"
            yield swapped(does, lambda past: [past[at] for at in order])
    if rows > 1:
        fix = "keep the rows of the cache in the order of the rows of `input_ids`"
        yield fault("past-stale", "feeds the rows the cache of other rows", _rows_rolled, fix)
        yield fault("past-stale", "feeds all rows the cache of row 0", lambda past: _rows(past, [0] * rows), fix)


def _by_side(past: Cache) -> Cache:
    flat = [k for k, _ in past] + [v for _, v in past]
    return list(zip(flat[::2], flat[1::2], strict=True))


def _keys_rotated(past: Cache) -> Cache:
    return [(past[at - 1][0], value) for at, (_, value) in enumerate(past)]


def _rows_rolled(past: Cache) -> Cache:
    return [(np.roll(k, 1, axis=0), np.roll(v, 1, axis=0)) for k, v in past]


def _rows(past: Cache, rows: list[int]) -> Cache:
    return [(k[rows], v[rows]) for k, v in past]


def _wrong_masks(padded: bool) -> Iterator[FaultyLoop]:
    seen = "put ones into `attention_mask` for all of the past that is no padding, not for the new tokens alone"

    def fault(does: str, mask: Callable[[Held], NDArray[np.int64] | None], fix: str = seen) -> FaultyLoop:
        return FaultyLoop("mask-too-short", does, lambda held: Feeds(held.past, mask(held), held.positions), fix)

    def ones(held: Held, past: int, value: int) -> NDArray[np.int64]:
        rows, width = held.positions.shape
        return np.concatenate((np.full((rows, past), value), np.ones((rows, width), np.int64)), axis=1)

    yield fault("masks the past, so that the new tokens see themselves only", lambda h: ones(h, h.step.past_length, 0))
    yield fault("feeds a mask of the new tokens only", lambda held: ones(held, 0, 0), "")
    yield fault("masks what was decoded, so that only the prompt is seen", _prompt_only)
    if padded:
        hidden = "put zeros into `attention_mask` where the rows are padded, at every step"
        yield fault("does not mask the padding of the rows", lambda held: ones(held, held.step.past_length, 1), hidden)


def _prompt_only(held: Held) -> NDArray[np.int64]:
    rows, width = held.positions.shape
    length = held.step.past_length + width
    mask = np.ones((rows, length), np.int64) if held.mask is None else held.mask.copy()
    mask[:, min(cache_length(held.zero), held.step.past_length) : held.step.past_length] = 0
    return mask

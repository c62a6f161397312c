"""The trace of bento_kv's own loop: the decoder that serves, step by step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bento_kv.contract.decoder import Decoder
from bento_kv.contract.manifest import Manifest
from bento_kv.contract.plan import StepPlan, StepRow
from bento_kv.doctor.loop.trace import TOP, Trace, TraceStep
from bento_kv.runtime.decoder import OnnxDecoder
from bento_kv.runtime.graph import CachedGraph
from bento_kv.runtime.growing_decoder import GrowingDecoder

PROMPT, STEPS = 5, 8


def own_trace(graph: CachedGraph, vocab_size: int, in_place: Path | None) -> Trace:
    """Greedy decoding by the decoder that would serve a graph, as a trace with all its fields.

    Args:
        graph: to be served.
        vocab_size: its tokens.
        in_place: the decoder directory, of the in-place layout; None for a growing cache.
    """
    decoder = _serving(graph, vocab_size, in_place)
    chunk = np.random.default_rng(7).integers(0, vocab_size, PROMPT).tolist()
    start, steps = 0, []
    for number in range(STEPS):
        before = _sums(decoder.cache.read(0, start))
        logits = decoder.step(StepPlan([StepRow(0, chunk, start)]))[0]
        end = start + len(chunk)
        top = np.argsort(-logits, kind="stable")[:TOP]
        steps.append(
            TraceStep(
                step=number,
                input_ids=(tuple(chunk),),
                past_length=start,
                position_ids=(tuple(range(start, end)),),
                attention_mask_length=end,
                present_length=end,
                next_token=(int(top[0]),),
                logits_top=(tuple((int(i), float(logits[i])) for i in top),),
                past_sum=before,
                present_sum=_sums(decoder.cache.read(0, end)),
            )
        )
        chunk, start = [int(top[0])], end
    return Trace(tuple(steps))


def _serving(graph: CachedGraph, vocab_size: int, in_place: Path | None) -> Decoder:
    if in_place is None:
        return GrowingDecoder(graph, slots=1, max_length=PROMPT + STEPS, vocab_size=vocab_size)
    length = min(Manifest.read(in_place).max_length, 4 * (PROMPT + STEPS))
    return OnnxDecoder(in_place, slots=2, max_length=length)


def _sums(cache: list[tuple[NDArray[np.float32], NDArray[np.float32]]]) -> tuple[float, ...]:
    return tuple(float(side.sum(dtype=np.float64)) for layer in cache for side in layer)

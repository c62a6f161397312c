"""Traces of right loops, greedy and of one row: of the golden one over a bare graph, and of the decoder that serves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bento_kv.contract.decoder import Decoder
from bento_kv.contract.manifest import Manifest
from bento_kv.contract.plan import StepPlan, StepRow
from bento_kv.doctor.loop.trace import Trace, TraceStep, cache_sums
from bento_kv.runtime.decoder import OnnxDecoder
from bento_kv.runtime.graph import CachedGraph, cache_length
from bento_kv.runtime.growing_decoder import GrowingDecoder

TOP = 5  # tokens whose logits a step prints
PROMPT, STEPS = 5, 8


def golden_trace(graph: CachedGraph, prompt_ids: Sequence[int], steps: int) -> Iterator[TraceStep]:
    """The loop as it has to be: step 0 feeds the prompt, every later step one token.

    Args:
        steps: how many, step 0 among them.

    Raises:
        DecoderError: the runtime refuses, or fails.
    """
    chunk, past = list(prompt_ids), graph.empty_cache(1)
    for number in range(steps):
        start = cache_length(past)
        positions = np.arange(start, start + len(chunk), dtype=np.int64)[None]
        output = graph.run(np.array([chunk], np.int64), past, positions=positions if graph.takes_positions else None)
        sums = cache_sums(past), cache_sums(output.present)
        step = _traced(number, chunk, start, cache_length(output.present), output.logits[0, -1], sums)
        yield step
        chunk, past = list(step.next_token or ()), output.present


def own_trace(graph: CachedGraph, vocab_size: int, in_place: Path | None) -> Trace:
    """The loop by the decoder that would serve a graph.

    Args:
        graph: to be served.
        vocab_size: its tokens.
        in_place: the decoder directory, of the in-place layout; None for a growing cache.
    """
    decoder = _serving(graph, vocab_size, in_place)
    chunk = np.random.default_rng(7).integers(0, vocab_size, PROMPT).tolist()
    start, steps = 0, []
    for number in range(STEPS):
        before = cache_sums(decoder.cache.read(0, start))
        logits = decoder.step(StepPlan([StepRow(0, chunk, start)]))[0]
        end = start + len(chunk)
        steps.append(_traced(number, chunk, start, end, logits, (before, cache_sums(decoder.cache.read(0, end)))))
        chunk, start = list(steps[-1].next_token or ()), end
    return Trace(tuple(steps))


def _serving(graph: CachedGraph, vocab_size: int, in_place: Path | None) -> Decoder:
    if in_place is None:
        return GrowingDecoder(graph, slots=1, max_length=PROMPT + STEPS, vocab_size=vocab_size)
    length = min(Manifest.read(in_place).max_length, 4 * (PROMPT + STEPS))
    # In mode `full` one graph computes everything: the one that is driven here, too. Another for prompts has other weights.
    return OnnxDecoder(in_place, slots=2, max_length=length, exact="full")


def _traced(
    number: int,
    chunk: Sequence[int],
    start: int,
    present: int,
    logits: NDArray[np.float32],
    sums: tuple[tuple[float, ...], tuple[float, ...]],
) -> TraceStep:
    """A step with all its fields.

    Args:
        number: of the step.
        chunk: the tokens that were fed, behind `start` positions.
        present: positions that came out.
        logits: `[vocab_size]`, after the last token.
        sums: of the cache that went in, and of the one that came out.
    """
    end = start + len(chunk)
    top = np.argsort(-logits, kind="stable")[:TOP]
    return TraceStep(
        step=number,
        input_ids=(tuple(chunk),),
        past_length=start,
        position_ids=(tuple(range(start, end)),),
        attention_mask_length=end,
        present_length=present,
        next_token=(int(top[0]),),
        logits_top=(tuple((int(token), float(logits[token])) for token in top),),
        past_sum=sums[0],
        present_sum=sums[1],
    )

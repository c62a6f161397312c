"""The export by numbers: the decoder against the torch reference, step by step as it is served."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bento_kv.contract.checks import Worst, at_most, scaled_error
from bento_kv.contract.decoder import Decoder
from bento_kv.contract.plan import StepPlan, StepRow
from bento_kv.contract.precision import FP32_LIMIT
from bento_kv.contract.reference import LayerArrays, NumericReference, Truth
from bento_kv.contract.verification import Check

DECODE_STEPS = 64
FAR_TOKENS = 8
FAR_PLACES = 32
WINDOW_CHUNK = 256


def check_numbers(decoder: Decoder, reference: NumericReference, truth: Truth, length: int) -> list[Check]:
    """Prefill, what it left in the cache, and teacher-forced decoding, all on one sequence in slot 0.

    Args:
        decoder: at least one slot.
        reference: of the same weights.
        truth: knows the logits after each of the first `length` tokens.
        length: of prompt and continuation; all but the last `DECODE_STEPS` are the prompt, at least two thirds.
    """
    ids = truth.ids
    prompt = max(1, 2 * length // 3, length - DECODE_STEPS)
    step0 = decoder.step(StepPlan([StepRow(0, ids[:prompt], 0, prompt)]))
    checks = [
        at_most(
            "prefill-logits",
            scaled_error(step0, truth.after(1, prompt)),
            FP32_LIMIT,
            f"largest error of the logits of a prompt of {prompt} tokens, relative to the largest logit",
        ),
        _check_cache(decoder.cache.read(0, prompt), reference.keys_values(ids[:prompt])),
    ]
    worst = Worst()
    for at in range(prompt, length):
        logits = decoder.step(StepPlan([StepRow(0, ids[at : at + 1], at)]))
        worst.see(scaled_error(logits, truth.after(at + 1)), f"position {at}")
    text = f"largest error of the logits of {length - prompt} decode steps fed the reference's tokens"
    return [*checks, at_most("decode-logits", worst.error, FP32_LIMIT, worst.describe(text))]


def _check_cache(got: LayerArrays, expected: LayerArrays) -> Check:
    worst = Worst()
    if len(got) != len(expected):
        worst.see(float("inf"), f"{len(got)} layers, the reference has {len(expected)}")
    for layer, (ours, theirs) in enumerate(zip(got, expected, strict=False)):
        for side, mine, other in zip(("keys", "values"), ours, theirs, strict=True):
            worst.see(scaled_error(mine, other), f"{side} of layer {layer}")
    text = "largest error of the keys and values that step 0 wrote, relative to the layer's largest"
    return at_most("step0-cache", worst.error, FP32_LIMIT, worst.describe(text))


def check_ragged(decoder: Decoder, reference: NumericReference, rows: Sequence[Sequence[int]]) -> Check:
    """Prompts of different lengths in one step, then decode steps in which some rows sit out."""
    expected = [reference.logits(ids) for ids in rows]
    done = [max(1, len(ids) // 2) for ids in rows]
    # Holes between the slots: a step binds a range of them, idle ones included.
    slots = [2 * r for r in range(len(rows))]
    logits = decoder.step(StepPlan([StepRow(s, ids[:n], 0) for s, ids, n in zip(slots, rows, done, strict=True)]))
    worst = Worst()
    for r, n in enumerate(done):
        worst.see(scaled_error(logits[r], expected[r][n - 1]), f"the prompt of row {r}, {n} tokens")
    tick = 0
    while any(n < len(ids) for n, ids in zip(done, rows, strict=True)):
        ready = [r for r, ids in enumerate(rows) if done[r] < len(ids)]
        # Every row sits out now and then, but never all of them.
        active = [r for r in ready if (r + tick) % 3] or ready
        logits = decoder.step(StepPlan([StepRow(slots[r], rows[r][done[r] : done[r] + 1], done[r]) for r in active]))
        for at, r in enumerate(active):
            worst.see(scaled_error(logits[at], expected[r][done[r]]), f"row {r}, position {done[r]}")
            done[r] += 1
        tick += 1
    text = f"largest error of the logits of {len(rows)} rows of different lengths that share steps"
    return at_most("ragged-rows", worst.error, FP32_LIMIT, worst.describe(text))


def check_far(decoder: Decoder, reference: NumericReference, ids: Sequence[int]) -> Check:
    """A few tokens at positions all over the decoder's range, its last ones among them, without what stands before.

    Wrong rows of a table of positions, rotary or learned, show wherever they are met.
    """
    n = min(len(ids), FAR_TOKENS)
    last = decoder.max_length - n
    starts = sorted({*np.linspace(0, last, FAR_PLACES, dtype=int).tolist(), last})
    expected = reference.at_offsets(ids[:n], starts)
    worst = Worst()
    for place, start in enumerate(starts):
        logits = decoder.step(StepPlan([StepRow(0, ids[:n], 0, n)]), position_offset=start)
        worst.see(scaled_error(logits, expected[place]), f"position {start}")
    text = f"largest error of the logits of {n} tokens at {len(starts)} places from position 0 to {last + n - 1}"
    return at_most("far-positions", worst.error, FP32_LIMIT, worst.describe(text))


def check_window(decoder: Decoder, reference: NumericReference, ids: Sequence[int]) -> Check:
    """A prompt longer than the longest sliding window, in chunks; its last logits show what the window leaves out."""
    for at in range(0, len(ids), WINDOW_CHUNK):
        chunk = ids[at : at + WINDOW_CHUNK]
        end = at + len(chunk) == len(ids)
        logits = decoder.step(StepPlan([StepRow(0, chunk, at, min(len(chunk), FAR_TOKENS) if end else 0)]))
    expected = reference.logits(ids, at=range(len(ids) - len(logits), len(ids)))
    text = f"largest error of the last logits of {len(ids)} tokens, which the longest sliding window does not span"
    return at_most("sliding-window", scaled_error(logits, expected), FP32_LIMIT, text)


def check_greedy(decoder: Decoder, reference: NumericReference, prompts: Sequence[Sequence[int]], steps: int) -> Check:
    """Free-running greedy decoding: every token must be the reference's, or tie with it.

    A token counts as wrong if the reference, given the same text, prefers another by more than rounding.
    """
    wrong, first = 0, ""
    for number, prompt in enumerate(prompts):
        ids = list(prompt)
        chunk: Sequence[int] = prompt
        for _ in range(steps):
            logits = decoder.step(StepPlan([StepRow(0, chunk, len(ids) - len(chunk))]))
            chunk = [int(logits[0].argmax())]
            ids += chunk
        expected = reference.logits(ids[:-1])[len(prompt) - 1 :]
        taken = expected[np.arange(steps), ids[len(prompt) :]]
        limit = 2 * FP32_LIMIT * max(1.0, float(np.abs(expected).max()))
        bad = np.flatnonzero(~(expected.max(axis=-1) - taken <= limit))
        wrong += len(bad)
        if len(bad) and not first:
            first = f"; first in prompt {number}, token {bad[0]}"
    text = f"tokens of {len(prompts)} greedy answers of {steps} that the reference would not have chosen{first}"
    return at_most("greedy-tokens", wrong, 0, text)

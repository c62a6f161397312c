"""The export along the sequence: prompts of every length, and decoding to the last position."""

from __future__ import annotations

from collections.abc import Sequence

from bento_kv.contract.checks import Worst, at_most, scaled_error
from bento_kv.contract.decoder import Decoder
from bento_kv.contract.plan import StepPlan, StepRow
from bento_kv.contract.precision import FP32_LIMIT
from bento_kv.contract.reference import Truth
from bento_kv.contract.verification import Check

LAST_STEPS = 16


def check_lengths(decoder: Decoder, truth: Truth, lengths: Sequence[int]) -> list[Check]:
    """Prompts of many lengths, and decode steps to the end of the longest, in slot 0.

    Args:
        decoder: of at least one slot, with room for the longest.
        truth: knows the logits after each length, and after the last `LAST_STEPS` up to the longest.
        lengths: ascending; each prompt is prefilled in one step of its own.
    """
    worst = Worst()
    for length in lengths:
        logits = decoder.step(StepPlan([StepRow(0, truth.ids[:length], 0)]))
        worst.see(scaled_error(logits, truth.after(length)), f"a prompt of {length} tokens")
    text = (
        f"largest error of the last logits of prompts of {_ranges(lengths)} tokens, of {decoder.max_length} that "
        "there is room for"
    )
    prompts = at_most("prompt-lengths", worst.error, FP32_LIMIT, worst.describe(text))
    return [prompts, _check_last_steps(decoder, truth, lengths[-1])]


def first_of_last_steps(length: int) -> int:
    """Tokens of the prompt behind which the last steps up to `length` are decoded."""
    return max(1, length - LAST_STEPS)


def _check_last_steps(decoder: Decoder, truth: Truth, length: int) -> Check:
    """Decoding one by one up to `length` tokens, the longest prompt being in slot 0.

    What it left at the positions to decode is overwritten first, by other tokens: decoding has to write them itself.
    """
    start = first_of_last_steps(length)
    if length > start:
        decoder.step(StepPlan([StepRow(0, list(reversed(truth.ids[start:length])), start, 0)]))
    worst = Worst()
    for at in range(start, length):
        logits = decoder.step(StepPlan([StepRow(0, truth.ids[at : at + 1], at)]))
        worst.see(scaled_error(logits, truth.after(at + 1)), f"position {at}")
    room = decoder.max_length
    reach = "the last that there is" if length == room else f"of {room}"
    text = f"largest error of the logits of {length - start} decode steps up to position {length - 1}, {reach}"
    return at_most("last-positions", worst.error, FP32_LIMIT, worst.describe(text))


def _ranges(numbers: Sequence[int]) -> str:
    """`1-40, 63-65, 128`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in runs)

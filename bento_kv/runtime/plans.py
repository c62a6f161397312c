"""Whether a step's plan can be carried out, whatever the layout of the cache."""

from __future__ import annotations

from collections.abc import Callable

from bento_kv.contract.plan import StepPlan, StepRow
from bento_kv.errors import DecoderError


def check_plan(plan: StepPlan, slots: int, max_length: int, held: Callable[[int], int]) -> None:
    """Insist on a plan that fits.

    Args:
        plan: to be checked.
        slots, max_length: of the cache.
        held: how far a slot was ever written: reading beyond would mean keys that nobody computed.

    Raises:
        DecoderError: it does not fit; the message names the slot.
    """
    if not plan.rows:
        raise DecoderError("a step without rows")
    seen: set[int] = set()
    for row in plan.rows:
        _check_row(row, slots, max_length, held)
        if row.slot in seen:
            raise DecoderError(f"slot {row.slot} is twice in one step")
        seen.add(row.slot)


def _check_row(row: StepRow, slots: int, max_length: int, held: Callable[[int], int]) -> None:
    n = len(row.tokens)
    if not 0 <= row.slot < slots:
        raise DecoderError(f"slot {row.slot} is not one of {slots}")
    if n < 1 or not 0 <= row.logits <= n:
        raise DecoderError(f"slot {row.slot}: {row.logits} logits of {n} tokens")
    if not 0 <= row.start <= held(row.slot):
        raise DecoderError(
            f"slot {row.slot}: starts at {row.start}, but only {held(row.slot)} positions were ever written"
        )
    if row.start + n > max_length:
        raise DecoderError(
            f"slot {row.slot}: {n} tokens from position {row.start} do not fit in {max_length} positions"
        )

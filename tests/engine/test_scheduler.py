from __future__ import annotations

import pytest

from bento_kv.engine.scheduler import Scheduler, SequenceState
from bento_kv.plan import StepPlan, StepRow


def waiting(scheduler: Scheduler, *lengths: int) -> list[SequenceState]:
    sequences = [SequenceState(str(i), list(range(length)), length) for i, length in enumerate(lengths)]
    for sequence in sequences:
        scheduler.add(sequence)
    return sequences


def shape(plan: StepPlan | None) -> list[tuple[int, int, int]]:
    """Slot, start and number of tokens of each row."""
    assert plan is not None
    return [(row.slot, row.start, len(row.tokens)) for row in plan.rows]


def advance(scheduler: Scheduler) -> list[tuple[int, int, int]]:
    plan = scheduler.schedule()
    assert plan is not None
    scheduler.update(plan, [(9,)] * len(plan.rows))
    scheduler.check_books()
    return shape(plan)


def test_nothing_to_do() -> None:
    assert Scheduler(slots=2, prefill_tokens=8).schedule() is None


def test_prompts_share_a_prefill_step_then_decode_together() -> None:
    scheduler = Scheduler(slots=4, prefill_tokens=8)
    waiting(scheduler, 3, 5)
    assert scheduler.schedule() == StepPlan((StepRow(0, (0, 1, 2), 0), StepRow(1, (0, 1, 2, 3, 4), 0)))
    assert advance(scheduler) == [(0, 0, 3), (1, 0, 5)]
    assert advance(scheduler) == [(0, 3, 1), (1, 5, 1)]
    assert advance(scheduler) == [(0, 4, 1), (1, 6, 1)]


def test_as_many_prompts_as_fit_in_a_prefill_step() -> None:
    scheduler = Scheduler(slots=4, prefill_tokens=8)
    waiting(scheduler, 3, 6, 2)
    assert advance(scheduler) == [(0, 0, 3)]
    assert advance(scheduler) == [(0, 3, 1)]
    assert advance(scheduler) == [(1, 0, 6), (2, 0, 2)]


def test_a_prompt_above_the_budget_has_a_step_of_its_own() -> None:
    scheduler = Scheduler(slots=4, prefill_tokens=8)
    waiting(scheduler, 20, 2)
    assert advance(scheduler) == [(0, 0, 20)]
    assert advance(scheduler) == [(0, 20, 1)]
    assert advance(scheduler) == [(1, 0, 2)]


def test_prefill_and_decode_take_turns() -> None:
    scheduler = Scheduler(slots=8, prefill_tokens=4)
    waiting(scheduler, 4, 4, 4)
    kinds = ["prefill" if any(tokens > 1 for _, _, tokens in advance(scheduler)) else "decode" for _ in range(7)]
    assert kinds == ["prefill", "decode", "prefill", "decode", "prefill", "decode", "decode"]


def test_a_prompt_of_one_token_is_a_decode_row_of_an_empty_slot() -> None:
    scheduler = Scheduler(slots=3, prefill_tokens=8)
    waiting(scheduler, 1, 3, 1)
    assert advance(scheduler) == [(1, 0, 3)]
    assert advance(scheduler) == [(0, 0, 1), (1, 3, 1), (2, 0, 1)]


def test_first_come_first_served_and_lowest_slot_first() -> None:
    scheduler = Scheduler(slots=2, prefill_tokens=100)
    first, second, third, fourth = waiting(scheduler, 2, 2, 2, 2)
    advance(scheduler)
    assert (first.slot, second.slot, third.slot) == (0, 1, None)
    scheduler.finish(second)
    scheduler.finish(first)
    advance(scheduler)
    assert (third.slot, fourth.slot) == (0, 1)


def test_a_waiting_sequence_can_be_finished() -> None:
    scheduler = Scheduler(slots=1, prefill_tokens=8)
    first, second = waiting(scheduler, 2, 2)
    advance(scheduler)
    scheduler.finish(second)
    scheduler.check_books()
    scheduler.finish(first)
    scheduler.check_books()
    assert scheduler.schedule() is None


def test_kv_tokens_and_prompt_tokens_are_counted() -> None:
    scheduler = Scheduler(slots=2, prefill_tokens=8)
    sequence, _ = waiting(scheduler, 3, 4)
    plan = scheduler.schedule()
    assert plan is not None
    assert scheduler.update(plan, [(9,), (9,)]) == 7
    plan = scheduler.schedule()
    assert plan is not None
    assert scheduler.update(plan, [(9,), (9,)]) == 0
    assert (scheduler.kv_tokens, sequence.generated, sequence.pending) == (9, 2, 1)


def test_drafts_are_computed_behind_the_pending_token_and_only_the_right_ones_count() -> None:
    scheduler = Scheduler(slots=2, prefill_tokens=8)
    (sequence,) = waiting(scheduler, 3)
    advance(scheduler)
    sequence.drafts = (5, 6, 7)
    plan = scheduler.schedule()
    assert plan == StepPlan((StepRow(0, (9, 5, 6, 7), 3, logits=4, drafts=3),))
    assert scheduler.update(plan, [(5, 6, 8)]) == 0
    scheduler.check_books()
    assert (sequence.tokens, sequence.computed) == ([0, 1, 2, 9, 5, 6, 8], 6)
    sequence.drafts = ()
    assert scheduler.schedule() == StepPlan((StepRow(0, (8,), 6),))


def test_the_books_notice_a_lost_slot() -> None:
    scheduler = Scheduler(slots=2, prefill_tokens=8)
    (sequence,) = waiting(scheduler, 2)
    advance(scheduler)
    assert sequence.slot is not None
    del scheduler.running[sequence.slot]
    with pytest.raises(AssertionError):
        scheduler.check_books()

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bento_kv.contract.plan import Exactness, StepPlan, StepRow
from bento_kv.engine.prefix_cache import PrefixCache
from bento_kv.engine.scheduler import Scheduler
from bento_kv.engine.sequence import SequenceState
from tests.engine.fakes import FakeDecoder

MAX_LENGTH = 10_000


def make_scheduler(
    *,
    slots: int = 4,
    prefill_tokens: int = 8,
    prefill_chunk: int = 8,
    exact: Exactness = "batch",
    chunked: bool = True,
    kv_tokens: int = 10**6,
    priority_places: int = 4,
    longest: int | None = None,
    spare_drafts: bool = False,
) -> Scheduler:
    decoder = FakeDecoder(slots=slots, max_length=MAX_LENGTH, exact=exact)
    cache = PrefixCache(decoder, slots=slots, kv_tokens=kv_tokens, exact=exact, reuse=False, longest=longest)
    return Scheduler(
        cache,
        prefill_tokens=prefill_tokens,
        prefill_chunk=prefill_chunk,
        exact=exact,
        chunked=chunked,
        spare_drafts=spare_drafts,
        priority_places=priority_places,
    )


def sequence(length: int, *, name: str = "r", answer: int = 100, priority: int = 0) -> SequenceState:
    return SequenceState(name, list(range(length)), length, length + answer, priority)


def waiting(scheduler: Scheduler, *lengths: int) -> list[SequenceState]:
    sequences = [sequence(length, name=str(i)) for i, length in enumerate(lengths)]
    for one in sequences:
        scheduler.add(one)
    return sequences


def shape(plan: StepPlan | None) -> list[tuple[int, int, int]]:
    """Slot, start and number of tokens of each row."""
    assert plan is not None
    return [(row.slot, row.start, len(row.tokens)) for row in plan.rows]


def advance(scheduler: Scheduler) -> list[tuple[int, int, int]]:
    plan = scheduler.schedule()
    assert plan is not None
    scheduler.update(plan, [(9,) if row.logits else () for row in plan.rows])
    scheduler.check_books()
    return shape(plan)


def test_nothing_to_do() -> None:
    assert make_scheduler().schedule() is None


def test_prompts_share_a_prefill_step_then_decode_together() -> None:
    scheduler = make_scheduler()
    waiting(scheduler, 3, 5)
    assert scheduler.schedule() == StepPlan((StepRow(0, (0, 1, 2), 0), StepRow(1, (0, 1, 2, 3, 4), 0)))
    assert advance(scheduler) == [(0, 0, 3), (1, 0, 5)]
    assert advance(scheduler) == [(0, 3, 1), (1, 5, 1)]
    assert advance(scheduler) == [(0, 4, 1), (1, 6, 1)]


def test_shorter_prompts_get_up_to_half_of_what_the_first_would_have() -> None:
    scheduler = make_scheduler()
    waiting(scheduler, 30, 30, 2, 4)
    assert advance(scheduler) == [(0, 0, 4), (1, 0, 2), (2, 0, 2)]
    assert advance(scheduler) == [(1, 2, 1)]
    assert advance(scheduler) == [(0, 4, 6), (2, 2, 2)]


def test_prompts_that_are_not_shorter_wait_for_the_first() -> None:
    scheduler = make_scheduler()
    waiting(scheduler, 12, 12, 3)
    assert advance(scheduler) == [(0, 0, 5), (1, 0, 3)]
    assert advance(scheduler) == [(1, 3, 1)]
    assert advance(scheduler) == [(0, 5, 7)]
    assert advance(scheduler) == [(0, 12, 1), (1, 4, 1)]
    assert advance(scheduler) == [(2, 0, 8)]


def test_a_short_prompt_does_not_wait_for_the_long_ones_before_it() -> None:
    scheduler = make_scheduler(slots=8)
    *_, short = waiting(scheduler, 1000, 1000, 1000, 3)
    for _ in range(3):
        advance(scheduler)
    assert short.generated == 2


def test_only_the_last_chunk_wants_logits() -> None:
    scheduler = make_scheduler()
    waiting(scheduler, 20)
    logits = []
    for _ in range(4):
        plan = scheduler.schedule()
        assert plan is not None
        logits.append(plan.rows[0].logits)
        scheduler.update(plan, [(9,) * plan.rows[0].logits])
    assert logits == [0, 0, 1, 1]


def test_who_decodes_waits_for_one_chunk_at_most() -> None:
    scheduler = make_scheduler(prefill_tokens=100, prefill_chunk=4)
    waiting(scheduler, 50)
    assert advance(scheduler) == [(0, 0, 50)]
    scheduler.add(sequence(13))
    steps = [advance(scheduler) for _ in range(8)]
    assert steps[::2] == [[(0, 50 + i, 1)] for i in range(4)]
    assert steps[1::2] == [[(1, 0, 4)], [(1, 4, 4)], [(1, 8, 3)], [(1, 11, 2)]]  # 5 were left: not 4 and 1


@settings(max_examples=200, deadline=None)
@given(
    arrivals=st.lists(
        st.tuples(st.integers(0, 30), st.integers(1, 40), st.integers(1, 6), st.integers(-1, 1)), max_size=12
    ),
    chunk=st.integers(3, 9),
    tokens=st.integers(3, 40),
    slots=st.integers(1, 5),
    exact=st.sampled_from(["batch", "full"]),
)
def test_the_stated_bound_between_two_tokens_holds(
    arrivals: list[tuple[int, int, int, int]], chunk: int, tokens: int, slots: int, exact: Exactness
) -> None:
    """And what a prefill row has to be in either mode, and that everything ends."""
    scheduler = make_scheduler(slots=slots, prefill_tokens=tokens, prefill_chunk=chunk, exact=exact)
    chunk = min(chunk, tokens)
    gaps: dict[SequenceState, list[int]] = {}  # since the last token: decode steps, prefill steps, prompt tokens
    alive: set[SequenceState] = set()
    for step in range(600):
        for at, length, answer, priority in arrivals:
            if at == step:
                newcomer = sequence(length, answer=answer, priority=priority)
                alive.add(newcomer)
                scheduler.add(newcomer)
        decoding = any(one.pending == 1 for one in scheduler.running.values())
        plan = scheduler.schedule()
        if plan is None:
            assert not alive
            if step > 30:
                return
            continue
        prefill = [row for row in plan.rows if not row.decodes]
        prompt_tokens = sum(len(row.tokens) for row in prefill)
        assert prompt_tokens <= (chunk if decoding else max(chunk, tokens))
        assert exact == "full" or len({row.decodes for row in plan.rows}) == 1
        for row in prefill:
            left = len(scheduler.running[row.slot].tokens) - row.start - len(row.tokens)
            assert len(row.tokens) >= 2
            assert left != 1
            assert row.logits == (left == 0)
        for gap in gaps.values():
            gap[0] += len(prefill) < len(plan.rows)
            gap[1] += bool(prefill)
            gap[2] += prompt_tokens
        for row in plan.rows:
            if row.logits:
                decode_steps, prefill_steps, between = gaps.get(scheduler.running[row.slot], (1, 0, 0))
                assert decode_steps == 1
                assert prefill_steps <= 1
                assert between <= chunk
                gaps[scheduler.running[row.slot]] = [0, 0, 0]
        scheduler.update(plan, [(9,) if row.logits else () for row in plan.rows])
        for one in [one for one in alive if one.slot is not None and len(one.tokens) == one.positions]:
            scheduler.finish(one)
            alive.remove(one)
            gaps.pop(one)
        scheduler.check_books()
    raise AssertionError(f"{len(alive)} did not end")


def test_in_mode_full_prompts_and_decoding_rows_share_a_step() -> None:
    scheduler = make_scheduler(exact="full", prefill_chunk=4)
    waiting(scheduler, 3)
    assert advance(scheduler) == [(0, 0, 3)]
    waiting(scheduler, 6)
    assert advance(scheduler) == [(0, 3, 1), (1, 0, 4)]
    assert advance(scheduler) == [(0, 4, 1), (1, 4, 2)]


def test_prompts_that_may_not_be_cut_are_not() -> None:
    scheduler = make_scheduler(chunked=False)
    waiting(scheduler, 20, 2, 7)
    assert advance(scheduler) == [(0, 0, 20)]
    assert advance(scheduler) == [(0, 20, 1)]
    assert advance(scheduler) == [(1, 0, 2)]
    assert advance(scheduler) == [(0, 21, 1), (1, 2, 1)]
    assert advance(scheduler) == [(2, 0, 7)]


def test_prefill_and_decode_take_turns() -> None:
    scheduler = make_scheduler(slots=8, prefill_tokens=4)
    waiting(scheduler, 4, 4, 4)
    kinds = ["prefill" if any(tokens > 1 for _, _, tokens in advance(scheduler)) else "decode" for _ in range(7)]
    assert kinds == ["prefill", "decode", "prefill", "decode", "prefill", "decode", "decode"]


def test_a_prompt_of_one_token_is_a_decode_row_of_an_empty_slot() -> None:
    scheduler = make_scheduler(slots=3)
    waiting(scheduler, 1, 3, 1)
    assert advance(scheduler) == [(1, 0, 3)]
    assert advance(scheduler) == [(0, 0, 1), (1, 3, 1), (2, 0, 1)]


def test_first_come_first_served_and_lowest_slot_first() -> None:
    scheduler = make_scheduler(slots=2, prefill_tokens=100, prefill_chunk=100)
    first, second, third, fourth = waiting(scheduler, 2, 2, 2, 2)
    advance(scheduler)
    assert (first.slot, second.slot, third.slot) == (0, 1, None)
    scheduler.finish(second)
    scheduler.finish(first)
    advance(scheduler)
    assert (third.slot, fourth.slot) == (0, 1)


def test_the_more_urgent_go_first_waiting_and_prefilling() -> None:
    scheduler = make_scheduler(slots=2)
    bulk, later, urgent = (sequence(20), sequence(4), sequence(4, priority=-1))
    scheduler.add(bulk)
    assert advance(scheduler) == [(0, 0, 8)]
    scheduler.add(later)
    scheduler.add(urgent)
    assert advance(scheduler) == [(0, 8, 4), (1, 0, 4)]
    assert later.slot is None
    assert urgent.slot == 1


def test_nothing_starves() -> None:
    """A level of priority is worth four places here: of the urgent ones that keep coming, three pass, and no more."""
    scheduler = make_scheduler(slots=1, priority_places=4)
    patient = sequence(2, answer=1)
    scheduler.add(patient)
    served = 0
    for _ in range(20):
        scheduler.add(sequence(2, answer=1, priority=-1))
    while patient.slot is None:
        advance(scheduler)
        served += 1
        for running in list(scheduler.running.values()):
            if running is not patient:
                scheduler.finish(running)
    assert served == 3 + 1


def test_memory_is_reserved_for_the_longest_answer_and_nobody_passes_the_first() -> None:
    scheduler = make_scheduler(kv_tokens=30)
    first, big, small = sequence(2, answer=10), sequence(2, answer=20), sequence(2, answer=1)
    for one in (first, big, small):
        scheduler.add(one)
    assert advance(scheduler) == [(0, 0, 2)]
    assert advance(scheduler) == [(0, 2, 1)]
    assert scheduler.cache.reserved == 12
    scheduler.finish(first)
    assert advance(scheduler) == [(0, 0, 2), (1, 0, 2)]
    assert scheduler.cache.reserved == 25


def test_a_waiting_sequence_can_be_finished() -> None:
    scheduler = make_scheduler(slots=1)
    first, second = waiting(scheduler, 2, 2)
    advance(scheduler)
    scheduler.finish(second)
    scheduler.check_books()
    scheduler.finish(first)
    scheduler.check_books()
    assert scheduler.schedule() is None


def test_kv_tokens_and_prompt_tokens_are_counted() -> None:
    scheduler = make_scheduler(slots=2)
    first, _ = waiting(scheduler, 3, 4)
    plan = scheduler.schedule()
    assert plan is not None
    assert scheduler.update(plan, [(9,), (9,)]) == 7
    plan = scheduler.schedule()
    assert plan is not None
    assert scheduler.update(plan, [(9,), (9,)]) == 0
    assert (scheduler.kv_tokens, first.generated, first.pending) == (9, 2, 1)


@pytest.mark.parametrize("exact", ["batch", "full"])
def test_drafts_stand_behind_the_last_token_and_those_accepted_are_computed(exact: Exactness) -> None:
    scheduler = make_scheduler(slots=2, exact=exact)
    guessing, plain = waiting(scheduler, 3, 3)
    advance(scheduler)
    guessing.drafts = (4, 5, 6)
    plan = scheduler.schedule()
    assert plan == StepPlan((StepRow(0, (9, 4, 5, 6), 3, logits=4, drafts=3), StepRow(1, (9,), 3)))
    assert all(row.decodes for row in plan.rows)
    guessing.drafts = ()
    scheduler.update(plan, [(4, 5, 7), (8,)])  # two were right
    scheduler.check_books()
    assert (guessing.tokens[3:], guessing.computed, guessing.pending) == ([9, 4, 5, 7], 6, 1)
    assert (plain.tokens[3:], plain.computed) == ([9, 8], 4)
    assert advance(scheduler) == [(0, 6, 1), (1, 4, 1)]


@pytest.mark.parametrize("exact", ["batch", "full"])
def test_a_spare_guess_is_checked_by_who_decodes_alone(exact: Exactness) -> None:
    scheduler = make_scheduler(slots=2, exact=exact, spare_drafts=True)
    (first,) = waiting(scheduler, 3)
    advance(scheduler)
    first.spare = (4,)
    plan = scheduler.schedule()
    assert plan == StepPlan((StepRow(0, (9, 4), 3, logits=2, drafts=1),))
    scheduler.update(plan, [(4, 7)])
    (second,) = waiting(scheduler, 3)
    first.spare = second.spare = (5,)
    advance(scheduler)  # a prefill, and in mode `full` a row that is not alone any more
    advance(scheduler)
    first.spare = second.spare = (5,)
    plan = scheduler.schedule()
    assert plan is not None
    assert [row.drafts for row in plan.rows] == [0, 0]


def test_drafts_are_cut_where_the_answer_must_end_and_where_a_step_of_all_slots_would_be_too_long() -> None:
    scheduler = make_scheduler(slots=2, prefill_tokens=20, prefill_chunk=10)
    ending, long = sequence(3, answer=4), sequence(3)
    scheduler.add(ending)
    scheduler.add(long)
    advance(scheduler)
    ending.drafts = long.drafts = tuple(range(20))
    plan = scheduler.schedule()
    assert plan is not None
    assert [row.drafts for row in plan.rows] == [2, 4]


def test_the_books_notice_a_lost_slot() -> None:
    scheduler = make_scheduler(slots=2)
    (one,) = waiting(scheduler, 2)
    advance(scheduler)
    assert one.slot is not None
    del scheduler.running[one.slot]
    with pytest.raises(AssertionError):
        scheduler.check_books()

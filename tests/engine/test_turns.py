"""Clients share the slots: nobody's many or long requests keep another's first one out."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bento_kv.contract.plan import Exactness
from bento_kv.engine.config import EngineConfig
from bento_kv.engine.engine import Engine
from bento_kv.engine.scheduler import Scheduler
from bento_kv.engine.sequence import SequenceState
from tests.effort import examples
from tests.engine.fakes import Client, FakeDecoder, client, letters, reference, run_to_end
from tests.engine.test_scheduler import make_scheduler


def ask(
    scheduler: Scheduler, whose: str | None, *, length: int = 2, answer: int = 3, priority: int = 0
) -> SequenceState:
    asked = SequenceState("r", list(range(length)), length, length + answer, priority, client=whose)
    scheduler.add(asked)
    return asked


def end_the_complete(scheduler: Scheduler) -> list[SequenceState]:
    ended = [one for one in scheduler.running.values() if len(one.tokens) == one.positions]
    for one in ended:
        scheduler.finish(one)
    return ended


def advance(scheduler: Scheduler) -> bool:
    """A step, on the decoder too, behind which the complete have ended. False if there is nothing to do."""
    plan = scheduler.schedule()
    if plan is None:
        return False
    scheduler.cache._decoder.step(plan)
    scheduler.update(plan, [(9,) if row.logits else () for row in plan.rows])
    scheduler.check_books()
    return True


def serve(scheduler: Scheduler, until: SequenceState) -> list[SequenceState]:
    """Steps until it has a slot. Returns who has ended before."""
    ended: list[SequenceState] = []
    while advance(scheduler):
        if until.slot is not None:
            return ended
        ended += end_the_complete(scheduler)
    raise AssertionError("nothing is left to do")


def serve_all(scheduler: Scheduler) -> None:
    """Steps until all have ended."""
    while scheduler.waiting or scheduler.running:
        assert advance(scheduler), (scheduler.waiting, scheduler.cache.paused)
        end_the_complete(scheduler)


def test_a_newcomer_gets_the_next_free_slot_however_many_wait_before_it() -> None:
    scheduler = make_scheduler(slots=4, prefill_tokens=100, prefill_chunk=100)
    for number in range(272):
        ask(scheduler, "crowd", answer=5 + number)
    for _ in range(3):
        advance(scheduler)
    newcomer = ask(scheduler, "quiet")
    assert serve(scheduler, newcomer) == []  # somebody is paused for it


def test_where_memory_lets_nobody_pause_it_gets_the_next_free_slot() -> None:
    scheduler = make_scheduler(slots=4, prefill_tokens=100, prefill_chunk=100, kv_tokens=4 * 30)
    for number in range(272):
        ask(scheduler, "crowd", answer=28 - number % 3)
    for _ in range(4):
        advance(scheduler)
    newcomer = ask(scheduler, "quiet", length=15, answer=15)
    assert len(serve(scheduler, newcomer)) == 1


def test_who_is_paused_goes_on_where_it_was_once_there_is_a_slot() -> None:
    scheduler = make_scheduler(slots=2, prefill_tokens=100, prefill_chunk=100)
    first, last = (ask(scheduler, "crowd", answer=50) for _ in range(2))
    for _ in range(5):
        advance(scheduler)
    newcomer = ask(scheduler, "quiet", answer=2)
    advance(scheduler)
    assert (first.slot is None, last.slot is None, newcomer.slot is None) == (False, True, False)
    assert last.generated == last.computed - 2 + 1 == 5
    while newcomer.generated < 2:
        advance(scheduler)
    assert last.generated == 5
    scheduler.finish(newcomer)
    for _ in range(3):
        advance(scheduler)
    assert last.generated > 5
    moves = [move[0] for move in scheduler.cache._decoder.moves]  # type: ignore[attr-defined] # it is the fake one
    assert (moves.count("save"), moves.count("restore")) == (1, 1)


@pytest.mark.parametrize("broken", ["save", "restore"])
@pytest.mark.parametrize("exact", ["batch", "full"])
def test_copies_that_fail_end_nobody(broken: str, exact: Exactness, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = FakeDecoder(slots=2, exact=exact)

    def fail(*args: object) -> None:
        raise MemoryError

    monkeypatch.setattr(decoder, broken, fail)
    engine = Engine(decoder, letters, EngineConfig(slots=2, exact=exact, prefix_cache=False))
    asked = []
    for number, whose in enumerate("aab"):
        if whose == "b":
            for _ in range(5):
                engine.step()
        asked.append(client("hello\n", f"r{number}", max_tokens=20, seed=number))
        asked[-1].client = whose
        engine.submit(asked[-1].request)
    run_to_end(engine)
    for one in asked:
        expected = reference(one.prompt_ids, one.params, max_length=64)
        assert (one.text, one.token_ids, one.finish_reason, one.stop_reason) == expected


def test_a_copy_is_never_what_others_wait_for() -> None:
    """Who is set aside waits behind who is more urgent, who must not wait for the memory of its copy."""
    scheduler = make_scheduler(slots=2, kv_tokens=80, longest=64)
    ask(scheduler, "a", length=20, answer=10, priority=5)
    ask(scheduler, "a", length=20, answer=22, priority=5)
    for _ in range(8):
        advance(scheduler)
    ask(scheduler, "c", length=2, answer=3, priority=0)
    ask(scheduler, "b", length=20, answer=44, priority=0)
    serve_all(scheduler)


@settings(max_examples=examples(200), deadline=None)
@given(
    asked=st.lists(
        st.tuples(
            st.sampled_from("abc"), st.integers(1, 40), st.integers(1, 24), st.integers(-2, 2), st.integers(0, 9)
        ),
        min_size=1,
        max_size=12,
    ),
    slots=st.integers(1, 4),
    kv_tokens=st.integers(64, 200),
)
def test_nobody_waits_for_ever(asked: list[tuple[str, int, int, int, int]], slots: int, kv_tokens: int) -> None:
    """Whatever memory there is, as long as the longest request has room in it."""
    scheduler = make_scheduler(slots=slots, kv_tokens=kv_tokens, longest=64)
    for whose, length, answer, priority, steps in asked:
        ask(scheduler, whose, length=length, answer=answer, priority=priority)
        for _ in range(steps):
            advance(scheduler)
            end_the_complete(scheduler)
    serve_all(scheduler)


def test_a_paused_one_can_be_finished() -> None:
    scheduler = make_scheduler(slots=2, prefill_tokens=100, prefill_chunk=100)
    _, last = (ask(scheduler, "crowd", answer=50) for _ in range(2))
    for _ in range(5):
        advance(scheduler)
    ask(scheduler, "quiet")
    advance(scheduler)
    assert last.paused is not None
    scheduler.finish(last)
    scheduler.check_books()
    assert scheduler.cache.paused == 0


@pytest.mark.parametrize(("priority", "pauses"), [(0, True), (1, False), (-1, True)])
def test_nobody_is_paused_for_the_less_urgent(priority: int, pauses: bool) -> None:
    scheduler = make_scheduler(slots=2, prefill_tokens=100, prefill_chunk=100)
    for _ in range(2):
        ask(scheduler, "crowd", answer=50)
    for _ in range(5):
        advance(scheduler)
    newcomer = ask(scheduler, "quiet", priority=priority)
    advance(scheduler)
    advance(scheduler)
    assert (newcomer.slot is not None) is pauses


def test_clients_with_as_many_slots_pause_nobody() -> None:
    scheduler = make_scheduler(slots=3, prefill_tokens=100, prefill_chunk=100)
    for whose in ("a", "a", "b", "a", "b"):
        ask(scheduler, whose, answer=30)
    for _ in range(25):
        advance(scheduler)
    assert not any(one.paused for one in scheduler.waiting)


def test_slots_are_shared_evenly_while_both_want_more_than_there_are() -> None:
    scheduler = make_scheduler(slots=4, prefill_tokens=100, prefill_chunk=100)
    for number in range(40):
        ask(scheduler, "a", answer=5 + number % 3)
    advance(scheduler)
    for number in range(40):
        ask(scheduler, "b", answer=5 + number % 3)
    for _ in range(12):
        end_the_complete(scheduler)
        advance(scheduler)
    for _ in range(30):
        end_the_complete(scheduler)
        advance(scheduler)
        assert Counter(one.client for one in scheduler.running.values()) == {"a": 2, "b": 2}


def test_a_client_alone_has_all_slots() -> None:
    scheduler = make_scheduler(slots=4, prefill_tokens=100, prefill_chunk=100)
    for _ in range(9):
        ask(scheduler, "alone")
    advance(scheduler)
    assert len(scheduler.running) == 4


def test_a_crowds_prompts_do_not_hold_up_a_newcomers() -> None:
    scheduler = make_scheduler(slots=16)
    for _ in range(200):
        ask(scheduler, "crowd", length=6, answer=1)
    advance(scheduler)
    newcomer = ask(scheduler, "quiet", length=40)
    steps = 0
    while not newcomer.generated:
        end_the_complete(scheduler)
        advance(scheduler)
        steps += 1
    assert steps < 2 * 40 / 4 + 5  # half of each step of prefill, and one of decoding between


def test_a_less_urgent_newcomer_waits_for_the_more_urgent() -> None:
    scheduler = make_scheduler(slots=1)
    crowd = [ask(scheduler, "crowd", answer=1) for _ in range(3)]
    newcomer = ask(scheduler, "quiet", answer=1, priority=1)
    assert set(serve(scheduler, newcomer)) == set(crowd)


def test_who_asks_first_is_served_first_within_a_client() -> None:
    scheduler = make_scheduler(slots=1)
    asked = [ask(scheduler, whose, answer=1) for whose in "aaabab"]
    served: list[SequenceState] = []
    while advance(scheduler):
        served += scheduler.running.values()
        end_the_complete(scheduler)
    for whose in "ab":
        own = [one for one in asked if one.client == whose]
        assert [one for one in served if one.client == whose] == own


Arrivals = list[tuple[int, str, int, int, int]]  # step, client, tokens of prompt and answer, priority


def arrivals(priorities: st.SearchStrategy[int]) -> st.SearchStrategy[Arrivals]:
    one = st.tuples(st.integers(0, 40), st.sampled_from("abc"), st.integers(1, 20), st.integers(1, 12), priorities)
    return st.lists(one, max_size=40)


@settings(max_examples=300, deadline=None)
@given(
    asked=arrivals(st.just(0)) | arrivals(st.integers(-1, 1)),
    slots=st.integers(1, 5),
    exact=st.sampled_from(["batch", "full"]),
)
def test_no_slot_goes_to_who_has_some_while_another_has_none(asked: Arrivals, slots: int, exact: Exactness) -> None:
    """The law of fairness: where all may be computed at once and are as urgent, a slot never goes to a client that then has
    two more than another that waits for one. However urgent they are, everything ends."""
    equals = {priority for *_, priority in asked} == {0}
    scheduler = make_scheduler(slots=slots, prefill_tokens=1000, prefill_chunk=1000, exact=exact)
    alive: set[SequenceState] = set()
    for step in range(1500):
        for at, whose, length, answer, priority in asked:
            if at == step:
                alive.add(ask(scheduler, whose, length=length, answer=answer, priority=priority))
        before = set(scheduler.running.values())
        plan = scheduler.schedule()
        held = Counter(one.client for one in scheduler.running.values())
        gained = {one.client for one in scheduler.running.values() if one not in before}
        if equals:
            left_out = {one.client for one in scheduler.waiting}
            assert all(held[one] <= held[other] + 1 for one in gained for other in left_out)
        if plan is None:
            assert not alive
            if step > 40:
                return
            continue
        scheduler.cache._decoder.step(plan)
        scheduler.update(plan, [(9,) if row.logits else () for row in plan.rows])
        alive -= set(end_the_complete(scheduler))
        scheduler.check_books()
    raise AssertionError(f"{len(alive)} did not end")


@pytest.mark.parametrize("exact", ["batch", "full"])
def test_whose_a_request_is_changes_when_it_is_answered_and_nothing_of_the_answer(exact: Exactness) -> None:
    def answers(clients: str) -> tuple[list[tuple[object, ...]], list[str]]:
        engine = Engine(
            FakeDecoder(slots=2, exact=exact),
            letters,
            EngineConfig(slots=2, exact=exact),
        )
        asked: list[Client] = []
        for number, whose in enumerate(clients):
            one = client(f"{'abcdef'[number]} hello\n", f"r{number}", max_tokens=4 + number, seed=number)
            one.client = whose
            engine.submit(one.request)
            asked.append(one)
        ends: list[str] = []
        while engine.step():
            ends += [one.id for one in asked if one.finish_reason and one.id not in ends]
        run_to_end(engine)
        return [one.result for one in asked], ends

    together, in_order = answers("aaaaaa")
    apart, in_turns = answers("aaaaab")
    assert together == apart
    assert in_order.index("r5") > in_turns.index("r5")

"""What is taken over, from where, and what is given up for it. That answers stay the same is a law (tests/laws)."""

from __future__ import annotations

import pytest

from bento_kv.contract.plan import Exactness, StepPlan
from bento_kv.engine.config import EngineConfig
from bento_kv.engine.engine import Engine
from bento_kv.engine.observer import NullObserver
from bento_kv.engine.prefix_cache import PrefixCache
from bento_kv.errors import QueueFullError, RequestError
from tests.engine.fakes import Client, FakeDecoder, client, letters, run_to_end

SYSTEM = "you are a helpful machine. "  # 27 tokens


class Counts(NullObserver):
    """Sums of what was looked up and found."""

    def __init__(self) -> None:
        self.queried: list[int] = []
        self.hits: list[int] = []

    def prefix_cache(self, query_tokens: int, hit_tokens: int) -> None:
        self.queried.append(query_tokens)
        self.hits.append(hit_tokens)


class World:
    """An engine on the fake decoder, and what it did."""

    def __init__(
        self, *, exact: Exactness = "batch", slots: int = 3, chunk_exact: bool = True, **config: object
    ) -> None:
        self.decoder = FakeDecoder(slots=slots, max_length=100, exact=exact, chunk_exact=chunk_exact)
        self.counts = Counts()
        self.engine = Engine(
            self.decoder,
            letters,
            EngineConfig(slots=slots, exact=exact, **config),  # type: ignore[arg-type]
            self.counts,
        )
        self.number = 0

    def ask(self, prompt: str, *, salt: str | None = None, priority: int = 0, **params: object) -> Client:
        self.number += 1
        who = client(prompt, f"r{self.number}", **{"temperature": 0, "max_tokens": 4, **params})
        who.cache_salt, who.priority = salt, priority
        self.engine.submit(who.request)
        return who

    def serve(self, *prompts: str, salt: str | None = None) -> list[Client]:
        """One after the other, each to its end."""
        clients = []
        for prompt in prompts:
            clients.append(self.ask(prompt, salt=salt))
            run_to_end(self.engine)
        return clients

    def moved(self, *kinds: str) -> list[tuple[object, ...]]:
        return [move for move in self.decoder.moves if move[0] in (kinds or ("copy", "save", "restore"))]


def test_the_same_prompt_again_starts_in_the_same_slot_and_nothing_is_copied() -> None:
    world = World()
    world.serve("hello\n", "hello\n")
    assert world.counts.queried == [6, 6]
    assert world.counts.hits == [0, 4]
    assert world.moved() == []
    assert {row.slot for plan in world.decoder.plans for row in plan.rows} == {0}


@pytest.mark.parametrize(("slots", "moves"), [(1, [("save", 0, 9)]), (3, [("copy", 0, 1, 5)])])
def test_in_mode_full_the_answer_behind_the_prompt_is_kept_too(slots: int, moves: list[tuple[object, ...]]) -> None:
    """In another slot or beyond: the next turn may continue it."""
    world = World(exact="full", slots=slots, kv_tokens=100)
    (first, _) = world.serve("hello\n", "hello\n")
    assert world.counts.hits == [0, 5]
    assert world.moved() == moves
    world.serve("hello\n" + first.text + "and then")
    assert world.counts.hits == [0, 5, 9]


@pytest.mark.parametrize(("exact", "hit"), [("batch", 6), ("full", 9)])
def test_the_next_turn_of_a_conversation_starts_behind_the_last_one(exact: Exactness, hit: int) -> None:
    """In mode `batch` behind its prompt: the answer was computed by another kernel than a prompt is."""
    world = World(exact=exact)
    (first,) = world.serve("hello\n")
    world.serve("hello\n" + first.text + "and then")
    assert world.counts.hits == [0, hit]
    assert world.moved() == []


def test_a_prefix_in_a_slot_that_runs_is_copied() -> None:
    world = World()
    world.ask(SYSTEM + "one", max_tokens=50)
    world.engine.step()
    world.serve(SYSTEM + "two")
    assert world.moved() == [("copy", 0, 1, 27)]
    assert world.counts.hits == [0, 27]


def test_a_conversation_is_not_given_up_for_one_that_begins_alike_while_there_are_empty_slots() -> None:
    world = World()
    world.serve(SYSTEM + "one", SYSTEM + "two", SYSTEM + "one more")
    assert world.moved() == [("copy", 0, 1, 27)]
    assert world.counts.hits == [0, 27, 30]


def test_what_has_to_leave_its_slot_is_kept_beyond_and_comes_back() -> None:
    world = World(slots=1, kv_tokens=100)
    world.serve("apples\n", "bananas\n", "apples\n")
    assert world.moved() == [("save", 0, 7), ("save", 0, 8), ("restore", 0, 5)]
    assert world.counts.hits == [0, 0, 5]


def test_the_least_recently_used_goes_first_when_memory_is_short() -> None:
    world = World(slots=3, kv_tokens=40)
    world.serve("aaaaaaaaaa", "bbbbbbbbbb", "aaaaaaaaaa")
    assert world.engine.stats().kv_tokens_cached == 20
    world.ask("cccccccccc", max_tokens=15)  # 25 of 40 positions: one entry has to go
    run_to_end(world.engine)
    world.serve("aaaaaaaaaa", "bbbbbbbbbb")
    assert world.counts.hits == [0, 0, 8, 0, 8, 0]


@pytest.mark.parametrize(("limit", "hits"), [(0, [0, 0, 0]), (7, [0, 0, 5])])
def test_copies_beyond_the_slots_have_a_limit_of_their_own(limit: int, hits: list[int]) -> None:
    world = World(slots=1, prefix_cache_tokens=limit)
    world.serve("apples\n", "pears\n", "apples\n")
    assert world.counts.hits == hits


def test_salts_keep_prefixes_apart() -> None:
    world = World()
    world.serve(SYSTEM, salt="one")
    world.serve(SYSTEM, salt="two")
    world.serve(SYSTEM)
    world.serve(SYSTEM, salt="one")
    assert world.counts.hits == [0, 0, 0, 25]


def test_a_prompt_of_one_token_neither_hits_nor_is_hit() -> None:
    world = World()
    world.serve("a", "a", "ab", "abc")
    assert world.counts.hits == [0, 0, 0, 1]


def test_without_the_cache_an_idle_slot_gives_its_memory_back() -> None:
    world = World(prefix_cache=False)
    world.serve("hello\n", "hello\n")
    assert world.decoder.moves == [("release", 0, 0)] * 2
    assert world.counts.queried == []
    assert world.engine.stats().kv_tokens_cached == 0


def test_with_the_cache_an_idle_slot_keeps_its_prompt_only() -> None:
    world = World()
    world.serve("hello\n")
    assert world.decoder.moves == [("release", 0, 6)]
    assert world.engine.stats().kv_tokens_cached == 6


def test_a_decoder_whose_bits_depend_on_chunks_reuses_nothing_and_gets_whole_prompts() -> None:
    world = World(chunk_exact=False, prefill_tokens=8, prefill_chunk=4)
    world.ask("hello hello hello\n")
    world.engine.step()
    world.serve("hello hello hello\n")
    assert world.moved() == []
    assert [len(row.tokens) for plan in world.decoder.plans for row in plan.rows if not row.decodes] == [18, 18]


def test_what_a_failed_step_left_is_not_taken_over() -> None:
    def fail(plan: StepPlan) -> None:
        if any(not row.decodes for row in plan.rows):
            raise OSError

    world = World()
    world.serve("hello\n")
    world.decoder.before_step = fail
    (failed,) = world.serve("hello\n")
    world.decoder.before_step = lambda plan: None
    world.serve("hello\n")
    assert failed.finish_reason == "error"
    assert world.counts.hits == [0, 4, 0]


def test_a_move_that_fails_costs_time_and_no_request() -> None:
    world = World(slots=1)

    def broken(*move: object) -> None:
        raise OSError

    (whole,) = World(prefix_cache=False).serve("apples\n")
    world.decoder.restore = broken  # type: ignore[method-assign]
    *_, last = world.serve("apples\n", "bananas\n", "apples\n")
    assert last.result == whole.result
    assert world.counts.hits == [0, 0, 0]


def test_no_memory_for_a_copy_means_no_copy() -> None:
    world = World(slots=1)

    def full(*move: object) -> None:
        raise MemoryError

    world.decoder.save = full  # type: ignore[method-assign,assignment]
    *_, last = world.serve("apples\n", "bananas\n", "apples\n")
    assert last.finish_reason == "length"
    assert world.counts.hits == [0, 0, 0]


def choices(world: World, prompt: str, count: int) -> list[Client]:
    """Requests that are submitted together."""
    clients = [client(prompt, f"choice{i}", seed=i, max_tokens=4) for i in range(count)]
    world.engine.submit_all([who.request for who in clients])
    return clients


def test_choices_share_the_prefill_of_their_prompt() -> None:
    world = World(slots=4, prefill_tokens=10, prefill_chunk=10)
    clients = choices(world, SYSTEM, 4)
    run_to_end(world.engine)
    chunks = [[len(row.tokens) for row in plan.rows] for plan in world.decoder.plans if not plan.rows[0].decodes]
    assert chunks == [[10], [10], [7], [2, 2, 2]]
    assert world.counts.hits == [0, 25, 25, 25]
    assert len({who.text for who in clients}) > 1


def test_when_the_first_choice_leaves_the_next_one_takes_its_place() -> None:
    world = World(slots=4, prefill_tokens=10, prefill_chunk=10)
    clients = choices(world, SYSTEM, 3)
    world.engine.step()
    world.engine.abort(clients[0].id)
    run_to_end(world.engine)
    assert [who.finish_reason for who in clients] == ["abort", "length", "length"]
    assert world.counts.hits == [0, 10, 25]


def test_a_group_is_accepted_as_a_whole_or_not_at_all() -> None:
    world = World(slots=1, max_queue=2)
    world.ask("hello\n")
    with pytest.raises(QueueFullError):
        choices(world, "hello\n", 3)
    with pytest.raises(RequestError, match="'twin'"):
        world.engine.submit_all([client(request_id="twin").request] * 2)
    with pytest.raises(RequestError, match="max_tokens"):
        world.engine.submit_all([client(request_id="good").request, client(request_id="bad", max_tokens=0).request])
    assert world.engine.stats().waiting == 1
    assert len(choices(world, "hello\n", 2)) == 2


def test_a_short_prompt_waits_for_what_it_shares_with_a_long_one_and_no_longer() -> None:
    world = World(prefill_tokens=10, prefill_chunk=10)
    world.ask(SYSTEM + "read this " * 5)
    world.engine.step()
    short = world.ask(SYSTEM + "hello", priority=-1, max_tokens=1)
    for _ in range(3):
        assert short.finish_reason is None
        world.engine.step()
    assert short.finish_reason == "length"
    assert world.counts.hits == [0, 27]


def test_a_prompt_that_shares_little_does_not_wait_for_another() -> None:
    world = World(prefill_tokens=10, prefill_chunk=10)
    world.ask("say, abcdefghijkl")
    world.ask("say, something of your own")
    world.engine.step()
    world.engine.step()
    assert [[len(row.tokens) for row in plan.rows] for plan in world.decoder.plans] == [[10], [7, 3]]
    run_to_end(world.engine)


def test_the_books_notice_positions_that_were_lost() -> None:
    cache = PrefixCache(FakeDecoder(), slots=2, kv_tokens=20, exact="full")
    cache.take([1, 2, 3], None, 10)
    cache.check_books()
    cache.reserved -= 1
    with pytest.raises(AssertionError):
        cache.check_books()

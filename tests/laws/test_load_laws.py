"""Laws 1 to 5 under a load that a machine thinks up: arrivals, aborts, deadlines, lengths, priorities, shared prefixes, salts.

Whatever it does, each request ends with the result that it has alone in an engine without chunks, neighbours and a prefix
cache, log-probabilities included, bit for bit; or with a beginning of it, if it was aborted, its time was up or its step failed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from bento_kv.contract.decoder import Decoder
from bento_kv.contract.plan import Exactness, StepPlan
from bento_kv.engine import core
from bento_kv.engine.config import EngineConfig
from bento_kv.engine.deadlines import Deadlines
from bento_kv.engine.engine import Engine
from bento_kv.engine.prefix_cache import PrefixCache
from bento_kv.engine.request import SamplingParams
from bento_kv.runtime.decoder import OnnxDecoder
from tests.effort import examples
from tests.engine.fakes import Client, FakeDecoder, run_to_end

SLOTS = 4
MAX_LENGTH = 40
# Prompts are paths in a small tree of these, so that many share long beginnings.
WORDS = ((1, 2, 3, 4, 5, 6, 7), (1, 2, 3, 9), (8,), (4, 4), (5, 6, 7, 8, 9, 10, 11, 12))

prompts = (
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=4)
    .map(lambda words: tuple(token for word in words for token in word))
    .map(lambda ids: ids[: MAX_LENGTH - 8])
)
params = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 7),
    temperature=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 3),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    logprobs=st.just(2),
)
configs = st.builds(
    EngineConfig,
    slots=st.integers(1, SLOTS),
    prefill_tokens=st.integers(3, 40),
    prefill_chunk=st.integers(3, 12),
    priority_places=st.integers(0, 4),
    kv_tokens=st.integers(MAX_LENGTH, 3 * MAX_LENGTH),
    prefix_cache_tokens=st.none() | st.integers(0, MAX_LENGTH),
    max_length=st.just(MAX_LENGTH),
)


def spell(ids: Sequence[int], /) -> str:
    return "".join(chr(ord("a") + i % 26) for i in ids)


class Flaky:
    """A decoder that fails when it is told to; all else is the decoder's own."""

    def __init__(self, decoder: Decoder) -> None:
        self.fails = 0  # steps that are to come, of the next ones
        self.decoder = decoder

    def __getattr__(self, name: str) -> object:
        return getattr(self.decoder, name)

    def step(self, plan: StepPlan) -> object:
        if self.fails:
            self.fails -= 1
            raise OSError("no model today")
        return self.decoder.step(plan)


class Clock:
    """What the engine asks whether time is up: the real one, or some seconds ahead of it."""

    ahead = 0.0

    def perf_counter(self) -> float:
        return time.perf_counter() + self.ahead


class UnderLoad(RuleBasedStateMachine):
    """One engine under load; subclasses say on which decoder."""

    exact: Exactness = "batch"

    def new_decoder(self) -> Decoder:
        raise NotImplementedError

    def alone(self, prompt_ids: tuple[int, ...], asked: SamplingParams) -> Client:
        raise NotImplementedError

    @initialize(config=configs)
    def start(self, config: EngineConfig) -> None:
        self.decoder = Flaky(self.new_decoder())
        values = {name: getattr(config, name) for name in config.__slots__} | {"exact": self.exact}
        self.engine = Engine(self.decoder, spell, EngineConfig(**values))  # type: ignore[arg-type]
        self.clients: list[Client] = []
        self.clock = Clock()
        self.watched = mock.patch.object(core, "time", self.clock)
        self.watched.start()

    @rule(
        prompt_ids=prompts,
        asked=st.lists(params, min_size=1, max_size=3),
        priority=st.integers(-2, 2),
        salt=st.sampled_from([None, None, "salt"]),
        max_time=st.sampled_from([None, None, 600.0]),
        whose=st.sampled_from([None, "a", "b"]),
    )
    def submit(
        self,
        prompt_ids: tuple[int, ...],
        asked: list[SamplingParams],
        priority: int,
        salt: str | None,
        max_time: float | None = None,
        whose: str | None = None,
    ) -> None:
        """A request, or several choices of one."""
        ends = Deadlines(max_time=max_time)
        number = len(self.clients)
        group = [Client(f"r{number + i}", prompt_ids, one, priority, salt, ends, whose) for i, one in enumerate(asked)]
        self.engine.submit_all([client.request for client in group])
        self.clients += group

    @precondition(lambda self: any(client.finish_reason in ("stop", "length") for client in self.clients))
    @rule(data=st.data(), more=prompts, asked=params)
    def go_on(self, data: st.DataObject, more: tuple[int, ...], asked: SamplingParams) -> None:
        """The next turn of a conversation."""
        done = [client for client in self.clients if client.finish_reason in ("stop", "length")]
        before = data.draw(st.sampled_from(done))
        prompt_ids = (*before.prompt_ids, *before.token_ids, *more)[: MAX_LENGTH - 8]
        self.submit(prompt_ids, [asked], before.priority, before.cache_salt)

    @rule(steps=st.integers(1, 6))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.engine.step()
            self.engine.check_books()

    @precondition(lambda self: bool(self.clients))
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        """A client goes away: within one step its slot is free."""
        client = data.draw(st.sampled_from(self.clients))
        self.engine.abort(client.id)
        self.engine.step()
        assert client.finish_reason is not None

    @rule()
    def let_time_pass(self) -> None:
        """An hour: whoever waits or runs with a deadline ends in the next step, and nobody else does for that."""
        self.clock.ahead = 3600.0
        self.engine.step()
        self.clock.ahead = 0.0
        for client in self.clients:
            if client.deadlines.max_time is None:
                assert client.timeout is None
            else:
                assert client.finish_reason is not None

    @rule(steps=st.integers(1, 4))
    def fail(self, steps: int) -> None:
        """One step, which its rows survive when they are tried alone; or some of these trials as well."""
        self.decoder.fails = steps

    @invariant()
    def the_books_agree(self) -> None:
        self.engine.check_books()

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        self.watched.stop()
        self.decoder.fails = 0
        run_to_end(self.engine)
        stats = self.engine.stats()
        assert (stats.running, stats.waiting, stats.kv_tokens_used, stats.kv_tokens_reserved) == (0, 0, 0, 0)
        for client in self.clients:
            whole = self.alone(client.prompt_ids, client.params)
            if client.finish_reason in ("stop", "length") and client.timeout is None:
                assert client.result == whole.result
            else:
                length = len(client.token_ids)
                assert client.timeout or client.finish_reason in ("abort", "error")
                assert client.token_ids == whole.token_ids[:length]
                assert client.logprobs == whole.logprobs[:length]


def alone_on(decoder: Decoder, exact: Exactness) -> Callable[[tuple[int, ...], SamplingParams], Client]:
    """What a request's result is, alone and in one go."""
    results: dict[tuple[object, ...], Client] = {}

    def answer(prompt_ids: tuple[int, ...], asked: SamplingParams) -> Client:
        key = (prompt_ids, asked.max_tokens, asked.temperature, asked.seed, asked.repetition_penalty)
        if key not in results:
            config = EngineConfig(slots=1, exact=exact, max_length=MAX_LENGTH, prefix_cache=False)
            engine = Engine(decoder, spell, config)
            results[key] = Client("alone", prompt_ids, asked)
            engine.submit(results[key].request)
            run_to_end(engine)
        return results[key]

    return answer


@pytest.mark.parametrize("exact", ["batch", "full"])
def test_under_load_equals_alone(exact: Exactness) -> None:
    mode = exact
    answer = alone_on(FakeDecoder(max_length=MAX_LENGTH, exact=mode), mode)

    class OnTheFake(UnderLoad):
        exact = mode

        def new_decoder(self) -> Decoder:
            return FakeDecoder(slots=SLOTS, max_length=MAX_LENGTH, exact=mode)

        def alone(self, prompt_ids: tuple[int, ...], asked: SamplingParams) -> Client:
            return answer(prompt_ids, asked)

    run_state_machine_as_test(OnTheFake, settings=_settings(100, 40))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("exact", ["batch", "full"])
def test_under_load_equals_alone_on_a_real_decoder(exact: Exactness, demo_decoder: Path) -> None:
    mode = exact
    decoder = OnnxDecoder(demo_decoder, slots=SLOTS, max_length=MAX_LENGTH, exact=mode)
    answer = alone_on(OnnxDecoder(demo_decoder, slots=1, max_length=MAX_LENGTH, exact=mode), mode)

    class OnTheDemo(UnderLoad):
        exact = mode

        def new_decoder(self) -> Decoder:
            return decoder  # what earlier engines left in it must not matter

        def alone(self, prompt_ids: tuple[int, ...], asked: SamplingParams) -> Client:
            return answer(prompt_ids, asked)

    run_state_machine_as_test(OnTheDemo, settings=_settings(25, 30))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("exact", ["batch", "full"])
@pytest.mark.parametrize("speculation", [0, 2])
def test_who_is_paused_for_others_answers_as_alone(exact: Exactness, speculation: int, demo_decoder: Path) -> None:
    """A client has all slots, and others come and go, one after the other and two at once."""
    decoder = OnnxDecoder(demo_decoder, slots=3, max_length=MAX_LENGTH, exact=exact)
    answer = alone_on(OnnxDecoder(demo_decoder, slots=1, max_length=MAX_LENGTH, exact=exact), exact)
    engine = Engine(decoder, spell, EngineConfig(slots=3, exact=exact, speculation=speculation))
    asked: list[Client] = []

    def submit(whose: str, number: int, max_tokens: int) -> None:
        params = SamplingParams(max_tokens=max_tokens, seed=number, logprobs=2, stop_token_ids=frozenset())
        prompt_ids = (*WORDS[number % 2], number + 1)
        asked.append(Client(f"r{len(asked)}", prompt_ids, params, client=whose))
        engine.submit(asked[-1].request)

    with mock.patch.object(PrefixCache, "resume", autospec=True, side_effect=PrefixCache.resume) as resumed:
        for number in range(5):
            submit("crowd", number, 20)
        for step in range(400):
            if step in (6, 14, 15, 23):
                submit("b" if step < 15 else "c", step, 3)
            if not engine.step():
                break
            engine.check_books()
    assert resumed.call_count >= 3
    for client in asked:
        expected = answer(client.prompt_ids, client.params)
        if exact == "full" or not speculation:
            assert client.result == expected.result
        else:  # a checked token has the low bits of a prefilled one
            assert client.finish_reason == expected.finish_reason


@cache
def _settings(count: int, steps: int) -> settings:
    return settings(
        max_examples=examples(count),
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )

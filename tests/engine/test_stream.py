"""The engine thread and asyncio together. Timeouts here are for tests that hang, none is part of what is tested."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field

import pytest

from bento_kv.contract.plan import StepPlan
from bento_kv.engine import backlog
from bento_kv.engine.config import EngineConfig
from bento_kv.engine.engine import Engine
from bento_kv.engine.request import SamplingParams, StepOutput, Submission
from bento_kv.engine.stream import TokenStream, entered
from bento_kv.errors import EngineClosedError, QueueFullError, RequestError, UnreadError
from tests.engine.fakes import Client, FakeDecoder, always, client, letters, to_ids

PATIENCE = 30  # seconds
GREEDY = SamplingParams(temperature=0, max_tokens=5)
ENDLESS = SamplingParams(temperature=0)
PROMPT = to_ids("hello\n")


@dataclass
class Gate:
    """Lets steps of a decoder pass one by one, or all."""

    steps: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    reached: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    open: bool = False

    def __call__(self, plan: StepPlan) -> None:
        self.reached.release()
        assert self.open or self.steps.acquire(timeout=PATIENCE)

    def let_all(self) -> None:
        self.open = True
        self.steps.release(1000)

    def wait(self) -> None:
        assert self.reached.acquire(timeout=PATIENCE)


@contextmanager
def running(decoder: FakeDecoder | None = None, **config: int) -> Iterator[Engine]:
    decoder = decoder or FakeDecoder(logits=always("abc"), max_length=100_000)
    engine = Engine(decoder, letters, EngineConfig(**config))  # type: ignore[arg-type]
    engine.start()
    try:
        yield engine
    finally:
        engine.close(drain=False)
    assert not engine.alive
    engine.check_books()
    assert engine.stats().running == 0


@dataclass
class Waiter:
    """Hears a request's events on the engine thread, for a test that waits for its end."""

    client: Client
    ended: threading.Event = field(default_factory=threading.Event)

    def submit(self, engine: Engine) -> None:
        request = self.client.request
        engine.submit(
            type(request)(id=request.id, prompt_ids=request.prompt_ids, params=request.params, emit=self.hear)
        )

    def hear(self, output: StepOutput) -> None:
        self.client.hear(output)
        if output.finish_reason:
            self.ended.set()

    def wait(self) -> None:
        assert self.ended.wait(PATIENCE)


def stream_of(engine: Engine, params: SamplingParams, request_id: str | None = None) -> TokenStream:
    named = {} if request_id is None else {"id": request_id}
    return TokenStream(engine, Submission(prompt_ids=PROMPT, params=params, **named))


async def read(engine: Engine, params: SamplingParams = GREEDY, request_id: str | None = None) -> list[StepOutput]:
    async with asyncio.timeout(PATIENCE), stream_of(engine, params, request_id) as stream:
        return [output async for output in stream]


async def idle(engine: Engine) -> None:
    async with asyncio.timeout(PATIENCE):
        while engine.stats().running or engine.stats().waiting:
            await asyncio.sleep(0.001)


def test_a_stream_gives_every_event_and_stops() -> None:
    with running() as engine:
        outputs = asyncio.run(read(engine))
    assert "".join(output.text for output in outputs) == "abcab"
    assert [output.finish_reason for output in outputs] == [None] * 4 + ["length"]


def test_many_streams_at_once() -> None:
    async def main(engine: Engine) -> list[list[StepOutput]]:
        return await asyncio.gather(*(read(engine) for _ in range(20)))

    with running(slots=4) as engine:
        texts = ["".join(output.text for output in outputs) for outputs in asyncio.run(main(engine))]
    assert texts == ["abcab"] * 20


def test_a_client_that_leaves_early_frees_its_slot() -> None:
    async def main(engine: Engine) -> None:
        async with stream_of(engine, ENDLESS) as stream:
            async for _ in stream:
                break
        await idle(engine)
        assert len(await read(engine)) == 5

    with running(slots=1, max_queue=0) as engine:
        asyncio.run(main(engine))


def test_a_cancelled_reader_frees_its_slot() -> None:
    async def main(engine: Engine) -> None:
        entered = asyncio.Event()

        async def reader() -> None:
            async with stream_of(engine, ENDLESS) as stream:
                async for _ in stream:
                    entered.set()

        task = asyncio.create_task(reader())
        async with asyncio.timeout(PATIENCE):
            await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await idle(engine)

    with running() as engine:
        asyncio.run(main(engine))


def test_a_stream_after_its_end_stays_ended() -> None:
    async def main(engine: Engine) -> None:
        async with stream_of(engine, GREEDY) as stream:
            assert len([output async for output in stream]) == 5
            assert [output async for output in stream] == []

    with running() as engine:
        asyncio.run(main(engine))


def test_a_stream_is_entered_once_and_read_inside() -> None:
    async def main(engine: Engine) -> None:
        stream = stream_of(engine, GREEDY)
        assert isinstance(stream, TokenStream)
        with pytest.raises(RuntimeError, match="inside"):
            await anext(stream)
        async with stream:
            with pytest.raises(RuntimeError, match="once"):
                await stream.__aenter__()

    with running() as engine:
        asyncio.run(main(engine))


def test_errors_of_submission_raise_on_entering() -> None:
    async def main(engine: Engine) -> None:
        with pytest.raises(RequestError, match="top_p"):
            await read(engine, SamplingParams(top_p=0))
        async with stream_of(engine, ENDLESS, "same"):
            with pytest.raises(RequestError, match="'same'"):
                await read(engine, request_id="same")
            with pytest.raises(QueueFullError):
                await read(engine)

    with running(slots=1, max_queue=0) as engine:
        asyncio.run(main(engine))
    with pytest.raises(EngineClosedError):
        asyncio.run(read(engine))


def test_streams_are_entered_together_or_not_at_all() -> None:
    async def main(engine: Engine) -> None:
        async with stream_of(engine, ENDLESS):
            with pytest.raises(QueueFullError):
                async with entered(engine, [stream_of(engine, ENDLESS) for _ in range(3)]):
                    pass
            assert engine.stats().running + engine.stats().waiting == 1
        await idle(engine)
        async with entered(engine, [stream_of(engine, ENDLESS) for _ in range(3)]) as streams:
            async with asyncio.timeout(PATIENCE):
                await anext(streams[0])
        await idle(engine)

    with running(slots=1, max_queue=2) as engine:
        asyncio.run(main(engine))


def test_a_closed_loop_does_not_break_the_engine() -> None:
    gate = Gate()
    with running(FakeDecoder(logits=always("abc"), before_step=gate)) as engine:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(stream_of(engine, ENDLESS).__aenter__())
        gate.wait()
        loop.close()
        gate.let_all()
        waiter = Waiter(client(request_id="after", temperature=0, max_tokens=3))
        waiter.submit(engine)
        waiter.wait()
        assert waiter.client.text == "abc"
        assert engine.alive


def test_the_queue_holds_exactly_so_many_under_a_rush() -> None:
    gate = Gate()
    with running(FakeDecoder(logits=always("abc"), before_step=gate), slots=2, max_queue=3) as engine:
        start, outcomes = threading.Barrier(8), list[str]()

        def rush(name: int) -> None:
            start.wait(PATIENCE)
            for i in range(5):
                try:
                    engine.submit(client(request_id=f"{name}-{i}", max_tokens=2).request)
                    outcomes.append("accepted")
                except QueueFullError:
                    outcomes.append("refused")

        threads = [threading.Thread(target=rush, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert sorted(outcomes) == ["accepted"] * 5 + ["refused"] * 35
        gate.let_all()


def test_close_drains_what_was_accepted() -> None:
    waiters = [Waiter(client(request_id=str(i), temperature=0, max_tokens=4)) for i in range(5)]
    with running(slots=2) as engine:
        for waiter in waiters:
            waiter.submit(engine)
        engine.close(drain=True)
        assert not engine.alive
        assert [waiter.client.text for waiter in waiters] == ["abca"] * 5


def test_close_refuses_new_requests_while_it_drains() -> None:
    gate = Gate()
    with running(FakeDecoder(logits=always("abc"), before_step=gate)) as engine:
        waiter = Waiter(client(temperature=0, max_tokens=3))
        waiter.submit(engine)
        gate.wait()
        closing = threading.Thread(target=engine.close)
        closing.start()
        while engine.accepting:
            closing.join(0.001)
        with pytest.raises(EngineClosedError, match="shutting down"):
            engine.submit(client(request_id="late").request)
        assert engine.alive
        gate.let_all()
        closing.join(PATIENCE)
        assert waiter.client.text == "abc"


@pytest.mark.parametrize("drain", [True, False])
def test_close_aborts_what_does_not_end_in_time(drain: bool) -> None:
    waiters = [Waiter(client(request_id=str(i), temperature=0)) for i in range(3)]
    with running(slots=2) as engine:
        for waiter in waiters:
            waiter.submit(engine)
        engine.close(drain=drain, timeout=0)
        assert [waiter.client.finish_reason for waiter in waiters] == ["abort"] * 3


def test_a_step_that_raises_does_not_end_the_thread() -> None:
    def fail(plan: StepPlan) -> None:
        raise MemoryError

    decoder = FakeDecoder(logits=always("abc"), before_step=fail)
    with running(decoder) as engine:
        (last,) = asyncio.run(read(engine))
        assert (last.finish_reason, last.text) == ("error", "")
        assert engine.accepting
        decoder.before_step = lambda plan: None
        assert len(asyncio.run(read(engine))) == 5


def test_a_failed_engine_ends_everything_and_says_so() -> None:
    def fail(plan: StepPlan) -> None:
        raise SystemExit  # not an Exception: it escapes the step

    gate = Gate()
    decoder = FakeDecoder(logits=always("abc"), slots=1, before_step=gate)
    with running(decoder) as engine:
        waiters = [Waiter(client(request_id=str(i))) for i in range(3)]
        waiters[0].submit(engine)
        gate.wait()
        decoder.before_step = fail
        for waiter in waiters[1:]:
            waiter.submit(engine)
        gate.let_all()
        for waiter in waiters:
            waiter.wait()
            assert waiter.client.finish_reason == "error"
            assert "SystemExit" in (waiter.client.error or "")
        assert not engine.accepting
        with pytest.raises(EngineClosedError, match="failed"):
            engine.submit(client(request_id="late").request)


def test_an_engine_is_started_once() -> None:
    with running() as engine:
        assert engine.alive
        assert engine.accepting
        with pytest.raises(RuntimeError):
            engine.start()


async def read_into(outputs: list[StepOutput], stream: TokenStream) -> None:
    async for output in stream:
        outputs.append(output)


@pytest.mark.parametrize(("logprobs", "most"), [(None, 8193), (20, 1312)])
def test_a_stream_that_is_not_read_ends_its_request_and_nobody_elses(logprobs: int | None, most: int) -> None:
    params = SamplingParams(temperature=0, logprobs=logprobs)

    async def scenario(engine: Engine) -> None:
        deaf = TokenStream(engine, Submission(prompt_ids=PROMPT, params=params))
        read = TokenStream(engine, Submission(prompt_ids=PROMPT, params=params))
        async with deaf, read:
            async for _ in read:
                if engine.stats().running == 1:
                    break
            waiting: list[StepOutput] = []
            with pytest.raises(UnreadError):
                await read_into(waiting, deaf)
            assert 0 < len(waiting) <= most
            assert engine.stats().running == 1

    with running() as engine:
        asyncio.run(asyncio.wait_for(scenario(engine), 300))


def alive(engine: Engine) -> int:
    return engine.stats().running + engine.stats().waiting


@pytest.fixture
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand events wait at most, and four thousand of a client."""
    monkeypatch.setattr(backlog, "UNREAD_LIMIT", 4000)
    monkeypatch.setattr(backlog, "CLIENT_LIMIT", 16_000)


@pytest.mark.usefixtures("low_limits")
def test_choices_that_are_not_read_count_together() -> None:
    """One is read and one is not: the limit is that of the answer, and both of it end. Others go on."""
    endless = Submission(prompt_ids=PROMPT, params=ENDLESS)

    async def scenario(engine: Engine) -> None:
        choices = [TokenStream(engine, Submission(prompt_ids=PROMPT, params=ENDLESS)) for _ in range(4)]
        async with TokenStream(engine, endless) as other:
            async with entered(engine, choices):
                async for _ in other:
                    if alive(engine) == 1:
                        break
                kept = [list[StepOutput]() for _ in choices]
                for outputs, choice in zip(kept, choices, strict=True):
                    with pytest.raises(UnreadError):
                        await read_into(outputs, choice)
                assert 0 < sum(map(len, kept)) <= 1001
            async for _ in other:
                break
            assert alive(engine) == 1

    with running() as engine:
        asyncio.run(asyncio.wait_for(scenario(engine), 300))
        assert engine.backlogs.clients == 0


@pytest.mark.usefixtures("low_limits")
def test_a_client_has_a_limit_for_all_its_answers_and_loses_those_that_it_does_not_read() -> None:
    def asked(client: str) -> Submission:
        return Submission(prompt_ids=PROMPT, params=ENDLESS, client=client)

    async def scenario(engine: Engine) -> None:
        deaf = [TokenStream(engine, asked("a")) for _ in range(6)]
        async with (
            TokenStream(engine, asked("a")) as read,
            TokenStream(engine, asked("b")) as other,
            AsyncExitStack() as all_,
        ):
            for stream in deaf:
                await all_.enter_async_context(stream)
            async for _ in read:
                await anext(other)
                if alive(engine) == 2:
                    break
            kept = [list[StepOutput]() for _ in deaf]
            for outputs, stream in zip(kept, deaf, strict=True):
                with pytest.raises(UnreadError):
                    await read_into(outputs, stream)
            assert sum(map(len, kept)) <= 4000 + 6
            await anext(read)
            await anext(other)

    decoder = FakeDecoder(slots=8, logits=always("abc"), max_length=100_000, before_step=lambda plan: time.sleep(0.001))
    with running(decoder, slots=8) as engine:
        asyncio.run(asyncio.wait_for(scenario(engine), 300))
        assert engine.backlogs.clients == 0

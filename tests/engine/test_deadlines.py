"""Deadlines, their watch and the watchdog, without a clock but their own."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, replace

import pytest

from bento_kv.engine.config import EngineConfig
from bento_kv.engine.deadlines import Deadlines, DeadlineWatch
from bento_kv.engine.engine import Engine
from bento_kv.errors import EngineClosedError, RequestError
from tests.engine.fakes import FakeDecoder, always, client, letters, run_to_end
from tests.engine.faulty import FaultyDecoder, Hang

PATIENCE = 60


@dataclass
class Timed:
    deadline: float


def test_deadlines_are_the_servers_unless_shorter() -> None:
    limits = Deadlines(max_queue_time=10, max_time=60)
    assert Deadlines().within(limits) == limits
    assert Deadlines(max_time=5).within(limits) == Deadlines(max_queue_time=10, max_time=5)
    assert Deadlines(max_time=5).within(Deadlines()) == Deadlines(max_time=5)
    with pytest.raises(RequestError, match="at most 60 seconds") as caught:
        Deadlines(max_time=61).within(limits)
    assert caught.value.param == "max_time"


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan])
def test_deadlines_are_seconds_above_0(value: float) -> None:
    for name in ("max_time", "max_queue_time"):
        with pytest.raises(RequestError, match="above 0") as caught:
            Deadlines(**{name: value}).within(Deadlines())
        assert caught.value.param == name
    for name in ("max_seconds", "max_queue_seconds", "step_timeout"):
        with pytest.raises(ValueError, match=name):
            EngineConfig(**{name: value})  # type: ignore[arg-type]


def test_the_queue_ends_with_the_whole() -> None:
    ends = Deadlines(max_queue_time=10, max_time=3).ends(100.0)
    assert (ends.queue, ends.total) == (103, 103)
    assert Deadlines(max_time=3).ends(100.0).queue == 103
    assert Deadlines().ends(100.0).total == math.inf


def test_the_watch_finds_all_that_are_due_and_no_others() -> None:
    watch, timed = DeadlineWatch(), [Timed(5), Timed(3), Timed(8), Timed(math.inf)]
    for it in timed:
        watch.add(it)
    assert watch.due(timed, 2) == []
    assert watch.due(timed, 5) == timed[:2]
    assert watch.due(timed[2:], 7) == []
    timed[2].deadline = 20  # it left the queue
    assert watch.due(timed[2:], 9) == []
    assert watch.due(timed[2:], 20) == [timed[2]]
    watch.add(Timed(21))
    assert watch.due([Timed(21)], 21) == [Timed(21)]


def make_engine(**config: object) -> Engine:
    return Engine(FakeDecoder(logits=always("abc")), letters, EngineConfig(**config))  # type: ignore[arg-type]


def test_an_answer_cut_by_time_begins_as_the_whole_one() -> None:
    engine, who = make_engine(), client(temperature=0)
    engine.submit(replace(who.request, deadlines=Deadlines(max_time=PATIENCE)))
    for _ in range(3):
        engine.step()
    (generation,) = engine._core.generations.values()
    generation._ends = Deadlines(max_time=1e-9).ends(generation.arrived)
    engine._core._deadline_watch.add(generation)
    run_to_end(engine)
    assert (who.text, who.finish_reason, who.error) == ("abc", "length", None)
    assert engine.stats().running == 0


def test_text_held_back_for_a_stop_is_not_lost_when_time_is_up() -> None:
    engine, who = make_engine(), client(temperature=0, stop=("cx",))
    engine.submit(who.request)
    for _ in range(3):
        engine.step()
    assert who.text == "ab"
    (generation,) = engine._core.generations.values()
    output = generation.time_out()
    assert (output.text, output.finish_reason, output.timeout) == ("c", "length", "total")


def test_a_waiting_request_ends_without_an_answer() -> None:
    engine = make_engine(slots=1, max_queue_seconds=1e-9)
    who = client()
    engine.submit(who.request)
    run_to_end(engine)
    assert (who.finish_reason, who.text) == ("abort", "")


def test_a_hanging_step_is_not_alive_until_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    hang = Hang(step=1)
    engine = Engine(FaultyDecoder(FakeDecoder(logits=always("abc")), hang), letters, EngineConfig(step_timeout=0.05))
    engine.start()
    ended = threading.Event()
    who = client(temperature=0, max_tokens=3)
    engine.submit(replace(who.request, emit=lambda output: ended.set() if output.finish_reason else None))
    assert hang.began.wait(PATIENCE)
    while engine.alive:
        pass
    assert not engine.accepting
    with pytest.raises(EngineClosedError, match=r"has been running for more than 0\.05 s"):
        engine.submit(client(request_id="late").request)
    hang.release()
    assert ended.wait(PATIENCE)
    while not engine.alive:
        pass
    engine.submit(client(request_id="later", max_tokens=1).request)
    assert engine.close()
    assert [record.levelname for record in caplog.records if "running for more" in record.message] == ["CRITICAL"]


def test_closing_does_not_wait_for_a_step_that_hangs() -> None:
    hang = Hang(step=0)
    engine = Engine(FaultyDecoder(FakeDecoder(), hang), letters, EngineConfig(step_timeout=0.05))
    engine.start()
    engine.submit(client().request)
    assert hang.began.wait(PATIENCE)
    assert not engine.close(timeout=0)
    hang.release()
    assert engine.close()


@pytest.mark.parametrize(
    ("workers", "cpus", "slots", "max_queue", "threads"),
    [(1, 2, 16, 256, 2), (2, 2, 8, 128, 1), (3, 2, 6, 86, 1), (2, 9, 8, 128, 4)],
)
def test_workers_take_their_parts(workers: int, cpus: int, slots: int, max_queue: int, threads: int) -> None:
    share = EngineConfig(step_timeout=7).share(workers, cpus)
    assert (share.slots, share.max_queue, share.threads, share.step_timeout) == (slots, max_queue, threads, 7)
    assert EngineConfig(threads=3).share(workers, cpus).threads == 3
    with pytest.raises(ValueError, match="workers"):
        EngineConfig().share(0, cpus)

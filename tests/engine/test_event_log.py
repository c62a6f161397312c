"""The event log of real requests, on disks that are well, full, and slow."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from bento_kv.engine.config import EngineConfig
from bento_kv.engine.engine import Engine
from bento_kv.engine.event_log import MAX_PENDING, EventLog
from bento_kv.engine.events import Event
from tests.engine.fakes import FakeDecoder, always, client, letters

FULL = Path("/dev/full")


def serve(log: EventLog, *clients: Any) -> None:
    """An engine with a thread, until all have ended."""
    engine = Engine(FakeDecoder(logits=always("abc")), letters, EngineConfig(slots=1), recorders=[log])
    for who in clients:
        engine.submit(who.request)
    engine.close()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def test_a_request_from_beginning_to_end(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    serve(EventLog(path), client("hi\n", "a", max_tokens=2, temperature=0))
    events = lines(path)
    assert [event["event"] for event in events] == ["queued", "admitted", "chunk", "first_token", "finished"]
    assert all(event["request"] == "a" and event["worker"] == os.getpid() for event in events)
    times = [event["time"] for event in events]
    assert times == sorted(times)
    assert times[0] > 1_600_000_000
    queued, admitted, chunk, _, finished = events
    assert queued["prompt_tokens"] == 3
    assert admitted["slot"] == 0
    assert (chunk["tokens"], chunk["computed"]) == (3, 3)
    assert (finished["reason"], finished["generated"]) == ("length", 2)


def test_what_went_wrong_is_told(tmp_path: Path) -> None:
    path, log = tmp_path / "events.jsonl", EventLog(tmp_path / "events.jsonl")

    def broken(ids: object) -> str:
        raise LookupError

    engine = Engine(FakeDecoder(), broken, EngineConfig(), recorders=[log])
    engine.submit(client(request_id="a").request)
    engine.close()
    late = Engine(FakeDecoder(), letters, EngineConfig(max_queue_seconds=1e-9), recorders=[EventLog(path)])
    late.submit(client(request_id="b").request)
    late.close()
    ends = {event["request"]: event for event in lines(path) if event["event"] == "finished"}
    assert ends["a"]["reason"] == "error"
    assert "LookupError" in ends["a"]["error"]
    assert (ends["b"]["reason"], ends["b"]["timeout"]) == ("abort", "queue")


def test_logs_of_several_processes_go_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    logs = [EventLog(path), EventLog(path)]
    for number, log in enumerate(logs):
        serve(log, client(request_id=str(number), max_tokens=1))
    assert {event["request"] for event in lines(path)} == {"0", "1"}


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")
def test_a_full_disk_is_named_once_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    log, clients = EventLog(FULL), [client(request_id=str(i), temperature=0, max_tokens=3) for i in range(20)]
    engine = Engine(FakeDecoder(logits=always("abc")), letters, EngineConfig(slots=2), recorders=[log])
    for who in clients:
        engine.submit(who.request)
        while engine.step():
            pass
    engine.close()
    assert [who.text for who in clients] == ["abc"] * 20
    told = [record.message for record in caplog.records if "event log" in record.message]
    assert told == ["the event log /dev/full cannot be written, and events are lost: No space left on device"]


def test_a_disk_that_is_well_again_is_named_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, write, room = tmp_path / "events.jsonl", os.write, [30, 0]

    def short_of_space(file: int, data: bytes) -> int:
        """Part of a line, then nothing, then all again."""
        if not room:
            return write(file, data)
        size = room.pop(0)
        if not size:
            raise OSError(28, "No space left on device")
        return write(file, data[:size])

    monkeypatch.setattr("bento_kv.engine.event_log.os.write", short_of_space)
    log = EventLog(path)
    log._write([_event("torn")])
    log._write([_event("whole")])
    log.close()
    torn, whole = [line for line in path.read_text().splitlines() if line]
    assert len(torn) == 30
    assert json.loads(whole)["request"] == "whole"
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.WARNING]


def test_a_slow_disk_loses_events_and_delays_nobody(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.close()  # nobody writes any more, as if it took for ever
    for number in range(MAX_PENDING + 5):
        log.record(_event(str(number)))
    assert log._lost == 5


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        EventLog(tmp_path / "nowhere" / "events.jsonl")


def test_a_recorder_that_raises_is_ignored() -> None:
    class Broken:
        def record(self, event: Event) -> None:
            raise ValueError

        def close(self) -> None:
            raise ValueError

    who = client(temperature=0, max_tokens=3)
    engine = Engine(FakeDecoder(logits=always("abc")), letters, EngineConfig(), recorders=[Broken()])
    engine.submit(who.request)
    assert engine.close()
    assert who.text == "abc"


def _event(request_id: str) -> Event:
    return Event(kind="first_token", request=client(request_id=request_id).request, at=0.0)

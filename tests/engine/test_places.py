"""One client's requests leave places to others."""

from __future__ import annotations

import pytest

from bento_kv.engine.config import EngineConfig
from bento_kv.engine.engine import Engine
from bento_kv.engine.places import Places
from bento_kv.errors import QueueFullError
from tests.engine.fakes import FakeDecoder, client, letters, run_to_end


def fill(places: Places, *clients: str) -> dict[str, int]:
    """Requests of each client in turn, until none of them may send another."""
    held = dict.fromkeys(clients, 0)
    waiting = [*clients]
    while waiting:
        for who in [*waiting]:
            try:
                places.take({f"{who}{held[who]}": who}, retry_after=1)
            except QueueFullError:
                waiting.remove(who)
            else:
                held[who] += 1
    return held


def test_a_client_alone_has_three_quarters_and_two_three_sevenths_each() -> None:
    assert fill(Places(16, 272), "a") == {"a": 204}
    assert Places(16, 272).for_one == 204
    assert fill(Places(16, 280), "a", "b") == {"a": 120, "b": 120}


def test_there_is_a_place_for_who_comes_next() -> None:
    for others in (["a"], ["a", "b"], ["a", "b", "c", "d"]):
        places = Places(4, 100)
        fill(places, *others)
        places.take({"new": "new"}, retry_after=1)


@pytest.mark.parametrize(("slots", "total"), [(1, 1), (4, 4), (4, 5), (2, 3)])
def test_a_client_may_have_all_slots(slots: int, total: int) -> None:
    places = Places(slots, total)
    assert fill(places, "a")["a"] >= slots
    assert places.for_one >= slots


def test_requests_of_nobody_in_particular_may_take_all() -> None:
    places = Places(1, 9)
    for number in range(9):
        places.take({str(number): None}, retry_after=1)
    with pytest.raises(QueueFullError):
        places.take({"late": None}, retry_after=1)


def test_a_place_is_free_again_when_its_request_has_ended() -> None:
    engine = Engine(FakeDecoder(slots=1), letters, EngineConfig(slots=1, max_queue=3))
    for turn in range(3):
        for number in range(3):
            asked = client(request_id=f"{turn} {number}", max_tokens=1)
            asked.client = "a"
            engine.submit(asked.request)
        late = client(request_id="late", max_tokens=1)
        late.client = "a"
        with pytest.raises(QueueFullError, match="3 requests of yours"):
            engine.submit(late.request)
        run_to_end(engine)

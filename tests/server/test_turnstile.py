"""Requests that come in crowds: each client's in its turn."""

import asyncio
import itertools
from typing import Any

from bento_kv.server.turnstile import Places, Turnstile, Waiting


def scope(client: str) -> dict[str, Any]:
    return {"type": "http", "client": (client, 1234)}


async def crowd(turnstile: Turnstile, *clients: str) -> None:
    """One request of each of these, all ready at once."""
    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(turnstile(scope(client), None, None))  # type: ignore[arg-type]


def test_one_among_a_crowd_of_another_client_is_next() -> None:
    begun: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        begun.append(scope["client"][0])

    asyncio.run(crowd(Turnstile(app), *["10.0.0.1"] * 50, "10.0.0.2", "10.0.0.3"))
    assert len(begun) == 52
    assert begun.index("10.0.0.2") <= 3
    assert begun.index("10.0.0.3") <= 4


def test_addresses_of_one_network_are_one_client() -> None:
    begun: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        begun.append(scope["client"][0])

    forged = [f"2001:db8::{number:x}" for number in range(1, 40)]
    asyncio.run(crowd(Turnstile(app), *forged, "10.0.0.2"))
    assert begun.index("10.0.0.2") <= 3


def test_between_two_beginnings_others_have_a_round_of_the_event_loop() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append("begun")

    async def scenario() -> None:
        loop = asyncio.get_running_loop()

        def beat() -> None:
            seen.append("beat")
            if seen.count("begun") < 20:
                loop.call_soon(beat)

        beat()
        await crowd(Turnstile(app), *["10.0.0.1"] * 20)

    asyncio.run(scenario())
    beginnings = [at for at, what in enumerate(seen) if what == "begun"]
    assert all(after - before > 1 for before, after in itertools.pairwise(beginnings)), seen


def test_lifespan_passes_and_a_free_turnstile_lets_the_next_in_at_once() -> None:
    begun: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        begun.append(scope["type"])

    async def scenario() -> None:
        turnstile = Turnstile(app)
        await turnstile({"type": "lifespan"}, None, None)  # type: ignore[arg-type]
        for _ in range(3):
            await turnstile(scope("10.0.0.1"), None, None)  # type: ignore[arg-type]

    asyncio.run(scenario())
    assert begun == ["lifespan", "http", "http", "http"]


def test_places_are_taken_by_turns() -> None:
    order: list[str] = []

    async def scenario() -> None:
        places = Places(1)

        async def work(client: str) -> None:
            async with places.place(client):
                order.append(client)
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as group:
            for client in "aaaabbc":
                group.create_task(work(client))

    asyncio.run(scenario())
    assert order == ["a", "a", "b", "c", "a", "b", "a"]


def test_places_come_back_from_who_leaves_while_waiting_or_when_its_turn_has_come() -> None:
    async def scenario() -> int:
        places = Places(2)
        at_work = most = 0

        async def work(client: str, seconds: float) -> None:
            nonlocal at_work, most
            async with places.place(client):
                at_work += 1
                most = max(most, at_work)
                try:
                    await asyncio.sleep(seconds)
                finally:
                    at_work -= 1

        first = [asyncio.create_task(work("a", 60)) for _ in range(2)]
        waiting = [asyncio.create_task(work("b", 0)) for _ in range(2)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        waiting[0].cancel()  # while it waits
        await asyncio.sleep(0)
        first[0].cancel()
        await asyncio.sleep(0)  # its place is b's now
        waiting[1].cancel()
        first[1].cancel()
        await asyncio.gather(*first, *waiting, return_exceptions=True)
        await asyncio.gather(*(work(client, 0) for client in "abcab"))
        return most

    assert asyncio.run(asyncio.wait_for(scenario(), 10)) == 2


def test_nobody_is_let_go_where_nobody_waits() -> None:
    async def scenario() -> list[bool]:
        waiting = Waiting()
        turn = waiting.add("a")
        turn.cancel()
        return [waiting.let_one_go(), waiting.let_one_go()]

    assert asyncio.run(scenario()) == [False, False]

"""What is prepared at once is bounded, in bytes and by client, and nothing is prepared for who has left."""

from __future__ import annotations

import asyncio
import json
import select
import socket
import threading

import httpx
import pytest

from bento_kv.errors import OutOfTimeError, QueueFullError, TokenizerError
from bento_kv.server.preparations import Preparations
from tests.server.world import MODEL, ByteTokenizer, World, serving

PATIENCE = 60  # seconds; a guard, not a measurement


class Gate:
    """Work that waits until it is let go."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.count = 0

    def __call__(self) -> None:
        self.count += 1
        self.begun.release()
        assert self.go_on.wait(PATIENCE)

    async def reached(self) -> None:
        assert await asyncio.to_thread(self.begun.acquire, timeout=PATIENCE)


def test_bytes_are_bounded_for_a_client_and_for_all() -> None:
    async def scenario() -> None:
        gate, preparations = Gate(), Preparations(400)
        under_way = [asyncio.create_task(preparations.run(gate, size=100, client=name)) for name in "aabb"]
        await gate.reached()
        assert preparations.bytes == 400
        for client in "ac":
            with pytest.raises(QueueFullError):
                await preparations.run(gate, size=1, client=client)
        gate.go_on.set()
        await asyncio.gather(*under_way)
        assert preparations.bytes == 0
        with pytest.raises(QueueFullError):
            await preparations.run(gate, size=201, client="a")

    asyncio.run(scenario())


def test_short_bodies_do_not_wait_behind_long_ones_and_long_ones_run_one_by_one() -> None:
    async def scenario() -> None:
        gate, preparations = Gate(), Preparations(100_000_000)
        long = [asyncio.create_task(preparations.run(gate, size=1_000_000, client="a")) for _ in range(5)]
        await gate.reached()
        assert await preparations.run(lambda: "done", size=100, client="b") == "done"
        assert gate.count == 1
        gate.go_on.set()
        await asyncio.gather(*long)

    asyncio.run(scenario())


def test_who_leaves_while_waiting_costs_nothing_and_who_leaves_later_counts_to_the_end() -> None:
    async def scenario() -> None:
        gate, preparations = Gate(), Preparations(100_000_000)
        first, *waiting = [asyncio.create_task(preparations.run(gate, size=1_000_000, client="a")) for _ in range(5)]
        await gate.reached()
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        assert preparations.bytes == 1_000_000
        first.cancel()
        await asyncio.sleep(0)
        assert preparations.bytes == 1_000_000
        gate.go_on.set()
        await asyncio.wait([first])
        assert first.cancelled()
        assert preparations.bytes == 0
        assert gate.count == 1

    asyncio.run(scenario())


def test_what_does_not_end_has_an_answer_keeps_its_place_and_shows() -> None:
    async def scenario() -> None:
        gate, preparations = Gate(), Preparations(100_000_000, timeout=0.2)
        short = [asyncio.create_task(preparations.run(gate, size=100, client="a")) for _ in range(3)]
        for stuck in short[:2]:
            with pytest.raises(TokenizerError, match=r"0\.2 s"):
                await stuck
        with pytest.raises(OutOfTimeError):
            await short[2]
        assert preparations.stalled
        assert preparations.bytes == 200
        assert await preparations.run(lambda: "long", size=1_000_000, client="b") == "long"
        gate.go_on.set()
        assert await asyncio.wait_for(preparations.run(lambda: "done", size=100, client="b"), PATIENCE) == "done"
        assert not preparations.stalled
        assert preparations.bytes == 0
        assert gate.count == 2

    asyncio.run(scenario())


class CountingTokenizer(ByteTokenizer):
    """Counts the long texts that it is given, and holds the first of them until told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()

    def encode(self, text: str, *, add_special_tokens: bool = True, room: int | None = None) -> list[int]:
        if len(text) > 100_000:
            self.gate()
        return super().encode(text, add_special_tokens=add_special_tokens)


def post(world: World, path: str, prompt: str) -> socket.socket:
    body = json.dumps({"model": MODEL, "prompt": prompt}).encode()
    connection = socket.create_connection(world.address, timeout=PATIENCE)
    connection.sendall(
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    return connection


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/tokenize"])
def test_nothing_is_prepared_for_clients_that_have_left(path: str) -> None:
    tokenizer = CountingTokenizer()
    with serving(tokenizer=tokenizer, app_options={"max_body_bytes": 200_000}) as world:
        staying = post(world, path, "x" * 150_000)
        assert tokenizer.gate.begun.acquire(timeout=PATIENCE)
        for _ in range(40):
            post(world, path, "x" * 150_000).close()
        # Those who left make room: their places are found free again.
        quick = {"model": MODEL, "prompt": "say:quick|"}
        assert httpx.post(f"{world.url}/v1/completions", json=quick, timeout=60).status_code == 200
        tokenizer.gate.go_on.set()
        staying.recv(1)
        last = httpx.post(world.url + path, json={"model": MODEL, "prompt": "x" * 150_000}, timeout=60)
        assert last.status_code in (200, 400)
        assert tokenizer.gate.count == 2
        staying.close()


def test_too_many_long_bodies_are_told_to_come_back() -> None:
    """Half of sixteen bodies of the largest size are one client's: ten of these."""
    tokenizer = CountingTokenizer()
    with serving(tokenizer=tokenizer, app_options={"max_body_bytes": 200_000}) as world:
        connections = [post(world, "/v1/tokenize", "x" * 150_000) for _ in range(30)]
        refused: set[socket.socket] = set()
        while len(refused) < 20:
            readable, _, _ = select.select([each for each in connections if each not in refused], [], [], PATIENCE)
            assert readable, f"only {len(refused)} are refused"
            refused |= set(readable)
        heads = [connection.recv(65536).decode() for connection in refused]
        assert all("429" in head and "retry-after" in head for head in heads)
        tokenizer.gate.go_on.set()
        for connection in connections:
            assert connection in refused or b"200 OK" in connection.recv(65536)
            connection.close()


class PanickingTokenizer(ByteTokenizer):
    """Its failure is the tokenizer's own."""

    def encode(self, text: str, *, add_special_tokens: bool = True, room: int | None = None) -> list[int]:
        raise TokenizerError("the model's tokenizer fails: a panic")


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/tokenize"])
def test_a_tokenizer_that_fails_is_500_with_a_sentence(path: str) -> None:
    with serving(tokenizer=PanickingTokenizer()) as world:
        answer = httpx.post(f"{world.url}{path}", json={"model": MODEL, "prompt": "Hi"})
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "the model's tokenizer fails: a panic"

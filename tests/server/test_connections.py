"""Connections are bounded in number, and in the time that they wait for their clients. All of it over loopback."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import pytest

from bento_kv.server import connections
from bento_kv.server.connections import ConnectionLimits
from tests.server.world import JSON, MODEL, World, serving

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
MODELS = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
QUICK: dict[str, Any] = {"model": MODEL, "prompt": "say:quick|"}
PATIENCE = 60  # seconds; a guard, not a measurement


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_LOOK_SECONDS", 0.05)


@contextmanager
def bounded(**limits: Any) -> Iterator[World]:
    with serving(connection_limits=ConnectionLimits(**limits)) as world:
        yield world


def connect(world: World, sent: bytes, *, receive_buffer: int | None = None) -> socket.socket:
    connection = socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(PATIENCE)
    connection.connect(world.address)
    connection.sendall(sent)
    return connection


def read_to_end(connection: socket.socket) -> bytes:
    received = b""
    with connection:
        while part := connection.recv(65536):
            received += part
    return received


def whole(body: dict[str, Any], path: bytes = b"/v1/completions") -> bytes:
    content = json.dumps(body).encode()
    return (HEAD % len(content)).replace(b"/v1/completions", path) + content


def read_answer(connection: socket.socket) -> bytes:
    """The head and the body of one answer, of a connection that goes on."""
    received = b""
    while b"\r\n\r\n" not in received or len(received.partition(b"\r\n\r\n")[2]) < length_of(received):
        part = connection.recv(65536)
        assert part, received
        received += part
    return received


def length_of(answer: bytes) -> int:
    return int(answer.partition(b"content-length: ")[2].split()[0])


def streaming(world: World) -> socket.socket:
    """A connection whose answer has begun and goes on."""
    connection = connect(world, whole({"model": MODEL, "prompt": "go on", "stream": True}))
    assert connection.recv(100).startswith(b"HTTP/1.1 200")
    return connection


def is_served(world: World) -> bool:
    return httpx.post(f"{world.url}/v1/completions", json=QUICK, timeout=PATIENCE).status_code == 200


def until_gone(world: World) -> None:
    assert world.server is not None
    deadline = time.monotonic() + PATIENCE
    while world.server.server_state.connections:
        assert time.monotonic() < deadline, world.server.server_state.connections
        time.sleep(0.01)


@pytest.mark.parametrize("sent", [b"", HEAD[:30], HEAD[:-4], b"P", b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\nGET"])
def test_a_head_that_does_not_come_ends_the_connection(sent: bytes) -> None:
    with bounded(head_seconds=0.3) as world:
        assert world.server is not None
        world.server.config.timeout_keep_alive = 1
        received = read_to_end(connect(world, sent))
        assert received == b"" or received.startswith(b"HTTP/1.1 200")
        until_gone(world)


def test_a_head_that_comes_byte_by_byte_has_no_more_time() -> None:
    with bounded(head_seconds=0.3) as world, connect(world, b"") as connection:
        connection.setblocking(False)
        deadline = time.monotonic() + PATIENCE
        with suppress(ConnectionError):
            while time.monotonic() < deadline:
                connection.sendall(b"x")
                time.sleep(0.02)
        assert time.monotonic() < deadline


@pytest.mark.parametrize("sent", [0, 1, 99])
def test_a_body_that_does_not_come_is_answered_with_408(sent: int) -> None:
    with bounded(body_seconds=0.3) as world:
        received = read_to_end(connect(world, HEAD % 100 + b" " * sent))
        head, _, body = received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert b"connection: close" in head
        assert json.loads(body)["error"]["code"] == "request_not_sent"
        until_gone(world)


def test_a_body_that_nobody_waits_for_ends_the_connection() -> None:
    """The answer is there before the body, which never comes."""
    with bounded(head_seconds=0.3, body_seconds=0.3) as world:
        assert read_to_end(connect(world, HEAD % 9_000_000)).startswith(b"HTTP/1.1 413")
        until_gone(world)


def test_who_is_answered_has_all_the_time() -> None:
    with serving(
        before_step=lambda plan: time.sleep(0.4), connection_limits=ConnectionLimits(head_seconds=0.3)
    ) as world:
        assert is_served(world)


def test_a_connection_that_is_used_again_and_again_goes_on() -> None:
    with bounded(head_seconds=0.3, body_seconds=0.3) as world, httpx.Client(base_url=world.url, headers=JSON) as http:
        ports = set()
        for _ in range(20):
            time.sleep(0.05)
            with http.stream("POST", "/v1/completions", json=QUICK) as response:
                response.read()
                ports.add(response.extensions["network_stream"].get_extra_info("client_addr"))
        assert len(ports) == 1


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_is_not_read_ends_its_request(stream: bool) -> None:
    """By the time, before so much waits that its request is ended by that."""
    body = {"model": MODEL, "prompt": "x" * 40_000, "echo": True, "max_tokens": 9000, "logprobs": 5, "n": 8}
    with serving(before_step=lambda plan: None, connection_limits=ConnectionLimits(unread_seconds=0.3)) as world:
        connection = connect(world, whole({**body, "stream": stream}), receive_buffer=4096)
        until_gone(world)
        world.wait_until_idle()
        connection.close()


def test_who_reads_slowly_is_served_to_the_end() -> None:
    """In longer than a client has that reads nothing, and slower than the kernel takes what it sends."""
    body = {"model": MODEL, "prompt": "x" * 900_000}
    with serving(connection_limits=ConnectionLimits(unread_seconds=0.5)) as world:
        connection = connect(world, whole(body, b"/v1/tokenize"), receive_buffer=65536)
        received = connection.recv(65536)
        length = length_of(received)
        while len(received) < length:
            time.sleep(0.03)
            part = connection.recv(65536)
            assert part, f"cut after {len(received)} of {length} bytes"
            received += part
        connection.close()


def test_one_connection_too_many_takes_the_place_of_the_oldest_that_waits() -> None:
    with bounded(connections=5) as world:
        busy = streaming(world)
        waiting = [connect(world, HEAD % 100)]
        time.sleep(0.3)  # longer than it takes to look at it
        waiting += [connect(world, sent) for sent in (b"", HEAD[:30], HEAD % 100)]
        assert is_served(world)
        received = read_to_end(waiting[0])
        assert received.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"retry-after" in received
        assert busy.recv(100)
        for _ in range(20):
            assert is_served(world)
        assert busy.recv(100)
        busy.close()


def test_where_all_are_served_one_more_is_refused() -> None:
    with bounded(connections=2) as world:
        busy = [streaming(world) for _ in range(2)]
        assert read_to_end(connect(world, b"")).startswith(b"HTTP/1.1 503")
        for connection in busy:
            assert connection.recv(100)
            connection.close()


def test_an_address_leaves_room_for_others() -> None:
    """One that has its share, all of them at work, is refused one more; who comes from elsewhere is served."""
    with bounded(connections=8) as world:
        busy = [streaming(world) for _ in range(6)]
        assert read_to_end(connect(world, b"")).startswith(b"HTTP/1.1 503")
        live = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        for host in ("127.0.0.2", "127.0.0.3"):
            other = socket.create_connection(world.address, PATIENCE, source_address=(host, 0))
            other.sendall(live)
            assert read_to_end(other).startswith(b"HTTP/1.1 200")
        for connection in busy:
            assert connection.recv(100)
            connection.close()


def test_a_crowd_takes_the_place_of_none_who_has_fewer() -> None:
    with bounded(connections=4) as world:
        other = socket.create_connection(world.address, PATIENCE, source_address=("127.0.0.2", 0))
        busy = [streaming(world) for _ in range(3)]
        assert read_to_end(connect(world, b"")).startswith(b"HTTP/1.1 503")
        other.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert read_to_end(other).startswith(b"HTTP/1.1 200")
        for connection in busy:
            connection.close()


def in_one_round(world: World, *works: Callable[[], object]) -> None:
    """Do things one behind the other in the server's event loop, which reads nothing meanwhile."""
    done = threading.Event()
    assert world.server is not None
    (connection,) = world.server.server_state.connections

    def do() -> None:
        for work in works:
            work()
        done.set()

    connection.loop.call_soon_threadsafe(do)
    assert done.wait(PATIENCE)


@pytest.mark.parametrize("ending", ["its time is over", "another one comes", "the server stops"])
def test_a_request_that_has_come_is_answered_though_nobody_has_read_it_yet(ending: str) -> None:
    """A client that uses its connection again at the moment in which the server is about to close it."""
    with bounded(connections=1) as world, connect(world, MODELS) as connection:
        assert read_answer(connection).startswith(b"HTTP/1.1 200")
        assert world.server is not None
        (kept,) = world.server.server_state.connections
        end = {
            "its time is over": kept.timeout_keep_alive_handler,
            "another one comes": lambda: kept.waiting_since() is None or kept.give_place(),
            "the server stops": kept.shutdown,
        }[ending]

        def come() -> None:
            connection.sendall(MODELS)
            time.sleep(0.05)  # the kernel hands it over

        in_one_round(world, come, end)
        assert read_answer(connection).startswith(b"HTTP/1.1 200")


def test_a_connection_is_kept_for_longer_than_a_head_may_take() -> None:
    with bounded(head_seconds=0.2) as world, connect(world, b"") as connection:
        for _ in range(3):
            connection.sendall(MODELS)
            assert read_answer(connection).startswith(b"HTTP/1.1 200")
            time.sleep(0.5)


def test_who_does_not_read_gives_place() -> None:
    """Slow readers, who take a little now and then, do not keep out who wants to know whether the server lives."""
    with bounded(connections=3) as world:
        body = {"model": MODEL, "prompt": "x" * 900_000}
        slow = [connect(world, whole(body, b"/v1/tokenize"), receive_buffer=4096) for _ in range(3)]
        for connection in slow:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        for _ in range(5):
            assert is_served(world)
            for connection in slow:
                with suppress(ConnectionError):
                    connection.recv(1000)
        for connection in slow:
            connection.close()


def test_the_address_with_the_most_connections_gives_place() -> None:
    with bounded(connections=4) as world:
        other = socket.create_connection(world.address, source_address=("127.0.0.2", 0))
        time.sleep(0.3)  # it has waited longest
        crowd = [connect(world, b"") for _ in range(3)]
        assert is_served(world)
        assert read_to_end(crowd[0]).startswith(b"HTTP/1.1 503")
        other.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert read_to_end(other).startswith(b"HTTP/1.1 200")


def test_a_server_that_stops_waits_for_nobodys_request() -> None:
    with bounded() as world:
        half, idle = connect(world, HEAD % 100), connect(world, HEAD[:30])
        assert is_served(world)
        assert world.server is not None
        world.server.should_exit = True
        assert read_to_end(half).startswith(b"HTTP/1.1 503")
        assert read_to_end(idle) == b""

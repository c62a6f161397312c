"""Clients that leave, queues that are full, engines that stop or fail: nothing is lost, and nothing is held."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from starlette.types import Message

from bento_kv.contract.plan import StepPlan
from bento_kv.server.app import openai_app
from tests.server.world import JSON, MODEL, World, serving

ENDLESS: dict[str, Any] = {"model": MODEL, "prompt": "go on"}
ENDLESS_CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "go on"}]}
BOTH = pytest.mark.parametrize("body", [ENDLESS, ENDLESS_CHAT], ids=["completions", "chat"])


class Gate:
    """Holds the decoder before a step while it is shut."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self.reached = threading.Event()

    def __call__(self, plan: StepPlan) -> None:
        self.reached.set()
        assert self._open.wait(120), "nobody opened the gate"

    def shut(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()


HEADERS = [(name.encode(), value.encode()) for name, value in JSON.items()]


def send(world: World, body: dict[str, Any]) -> socket.socket:
    """A request on a socket of its own, its answer unread."""
    content = json.dumps(body).encode()
    route = "chat/completions" if "messages" in body else "completions"
    head = f"POST /v1/{route} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    connection = socket.create_connection(world.address, timeout=60)
    connection.sendall(head.encode() + content)
    return connection


@pytest.fixture
def own_world() -> Iterator[World]:
    with serving(slots=2, max_queue=1) as world:
        yield world


@BOTH
@pytest.mark.parametrize("n", [1, 2])
def test_leaving_a_stream_frees_its_slots(own_world: World, body: dict[str, Any], n: int) -> None:
    connection = send(own_world, {**body, "stream": True, "n": n})
    received = b""
    while received.count(b"data: ") < 4:
        received += connection.recv(65536)
    connection.close()
    own_world.wait_until_idle()
    assert own_world.observer.reasons == ["abort"] * n


def test_the_openai_client_leaves_by_closing_its_stream(own_world: World) -> None:
    with own_world.client() as client, client.completions.create(**ENDLESS, stream=True, n=2) as stream:
        next(iter(stream))
    own_world.wait_until_idle()
    assert own_world.observer.reasons == ["abort"] * 2


@BOTH
@pytest.mark.parametrize("n", [1, 3])
def test_leaving_a_whole_answer_frees_its_slots(own_world: World, body: dict[str, Any], n: int) -> None:
    connection = send(own_world, {**body, "n": n})
    own_world.wait_until(lambda stats: stats.running == min(n, 2))
    connection.close()
    own_world.wait_until_idle()
    assert own_world.observer.reasons == ["abort"] * n


@BOTH
@pytest.mark.parametrize("stream", [False, True])
def test_leaving_the_queue_frees_the_place(own_world: World, body: dict[str, Any], stream: bool) -> None:
    first = send(own_world, {**body, "n": 2})
    own_world.wait_until(lambda stats: stats.running == 2)
    waiting = send(own_world, {**body, "stream": stream})
    own_world.wait_until(lambda stats: stats.waiting == 1)
    waiting.close()
    own_world.wait_until(lambda stats: stats.waiting == 0)
    assert own_world.engine.stats().running == 2
    first.close()
    own_world.wait_until_idle()


@BOTH
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 2])
def test_leaving_before_the_first_token(
    body: dict[str, Any], stream: bool, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows are free within one step: the one that runs when the client leaves is the last."""
    gate, told = Gate(), list[str]()
    with serving(before_step=gate) as world:
        abort = world.engine.abort
        monkeypatch.setattr(world.engine, "abort", lambda request_id: (abort(request_id), told.append(request_id)))
        gate.shut()
        connection = send(world, {**body, "stream": stream, "n": n})
        world.wait_until(lambda stats: stats.running + stats.waiting == n)
        assert gate.reached.wait(60)
        connection.close()
        world.wait_until(lambda stats: len(told) == n)
        gate.open()
        world.wait_until_idle()
        assert world.observer.reasons == ["abort"] * n
        assert len(world.decoder.plans) == 1


def test_leaving_in_the_middle_of_the_body(world: World) -> None:
    connection = socket.create_connection(world.address, timeout=60)
    connection.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    )
    connection.close()
    assert httpx.get(f"{world.url}/v1/models").status_code == 200


def test_a_send_that_fails_is_a_client_that_left(own_world: World) -> None:
    """Servers that speak ASGI 2.4 raise from `send`; uvicorn does not, so this one is called directly."""
    body = json.dumps({**ENDLESS, "stream": True}).encode()
    sent: list[str] = []

    async def run() -> None:
        incoming = iter([{"type": "http.request", "body": body}])

        async def receive() -> Message:
            return next(incoming, None) or await asyncio.Future()

        async def gone(message: Message) -> None:
            sent.append(message["type"])
            if len(sent) > 3:
                raise OSError("gone")

        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": HEADERS, "query_string": b""}
        await openai_app(own_world)(scope, receive, gone)

    asyncio.run(run())
    assert sent == ["http.response.start", *["http.response.body"] * 3]
    own_world.wait_until_idle()
    assert own_world.observer.reasons == ["abort"]


def test_a_cancelled_handler_frees_its_slot(own_world: World) -> None:
    """As on a server's shutdown or by BentoML's timeout."""
    body = json.dumps(ENDLESS).encode()

    async def run() -> None:
        incoming = iter([{"type": "http.request", "body": body}])

        async def receive() -> Message:
            return next(incoming, None) or await asyncio.Future()

        async def send(message: Message) -> None:
            raise AssertionError("an answer to nobody")

        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": HEADERS, "query_string": b""}
        call = asyncio.ensure_future(openai_app(own_world)(scope, receive, send))
        await asyncio.to_thread(own_world.wait_until, lambda stats: stats.running == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(run())
    own_world.wait_until_idle()
    assert own_world.observer.reasons == ["abort"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue_is_429_with_retry_after(own_world: World, stream: bool) -> None:
    occupying = send(own_world, {**ENDLESS, "n": 3})
    own_world.wait_until(lambda stats: stats.running + stats.waiting == 3)
    with own_world.client() as client, pytest.raises(openai.RateLimitError) as caught:
        client.completions.create(**ENDLESS, stream=stream)
    assert (caught.value.type, caught.value.code) == ("rate_limit_error", "rate_limit_exceeded")
    assert int(caught.value.response.headers["retry-after"]) >= 1
    occupying.close()
    own_world.wait_until_idle()


def test_more_choices_than_places_can_never_be_served(own_world: World) -> None:
    with own_world.client() as client, pytest.raises(openai.BadRequestError, match="takes 3 at once") as caught:
        client.completions.create(**ENDLESS, n=5, stream=True)
    assert caught.value.param == "n"
    own_world.wait_until_idle()


def test_more_choices_than_free_places_leave_none_behind(own_world: World) -> None:
    occupying = send(own_world, {**ENDLESS, "n": 2})
    own_world.wait_until(lambda stats: stats.running + stats.waiting == 2)
    with own_world.client() as client, pytest.raises(openai.RateLimitError):
        client.completions.create(**ENDLESS, n=3, stream=True)
    own_world.wait_until(lambda stats: stats.running + stats.waiting == 2)
    assert own_world.observer.reasons == []  # none was begun to be aborted
    occupying.close()
    own_world.wait_until_idle()


@pytest.mark.parametrize("stream", [False, True])
def test_a_closed_engine_is_503(stream: bool) -> None:
    with serving() as world, world.client() as client:
        world.engine.close()
        with pytest.raises(openai.InternalServerError) as caught:
            client.completions.create(**ENDLESS, stream=stream)
        assert client.models.list().data
    assert caught.value.status_code == 503
    assert (caught.value.type, caught.value.code) == ("server_error", "service_unavailable")
    assert int(caught.value.response.headers["retry-after"]) >= 1


def test_a_shutdown_ends_a_whole_answer_with_503_and_a_stream_with_an_error() -> None:
    with serving() as world, world.client() as client:
        with client.completions.create(**ENDLESS, stream=True) as stream:
            chunks = iter(stream)
            next(chunks)
            whole = send(world, ENDLESS)
            world.wait_until(lambda stats: stats.running == 2)
            world.engine.close(drain=False)
            with pytest.raises(openai.APIError, match="shutting down"):
                list(chunks)
        assert whole.recv(12) == b"HTTP/1.1 503"
        whole.close()


def fail_at(step: int) -> Callable[[StepPlan], None]:
    """A decoder that fails in its step of this number, and where that is tried again."""
    steps = iter(range(10**9))

    def before_step(plan: StepPlan) -> None:
        if next(steps) in (step, step + 1):
            raise RuntimeError("secret detail")

    return before_step


def test_a_failed_step_is_500_and_the_next_request_is_served(caplog: pytest.LogCaptureFixture) -> None:
    with serving(before_step=fail_at(3)) as world, world.client() as client:
        with pytest.raises(openai.InternalServerError) as caught:
            client.completions.create(model=MODEL, prompt="say:hello|")
        assert client.completions.create(model=MODEL, prompt="say:hello|").choices[0].text == "hello"
    assert caught.value.status_code == 500
    assert caught.value.code == "internal_error"
    request_id = caught.value.response.headers["x-request-id"]
    assert request_id in caught.value.message
    assert "secret" not in caught.value.message
    assert "RuntimeError" not in caught.value.message
    assert request_id in caplog.text


def test_a_step_that_fails_in_a_stream_ends_it_with_an_error_event() -> None:
    body = {"model": MODEL, "prompt": "say:hello|", "stream": True}
    with serving(before_step=fail_at(3)) as world:
        response = httpx.post(f"{world.url}/v1/completions", json=body)
    *chunks, last = [json.loads(line.removeprefix("data: ")) for line in response.text.split("\n\n") if line]
    assert response.status_code == 200
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "hel"
    assert last["error"]["type"] == "server_error"
    assert "secret" not in response.text


class Broken:
    """A tokenizer with a fault."""

    def encode(self, text: str, *, add_special_tokens: bool = True, room: int | None = None) -> list[int]:
        raise KeyError("secret detail")


def test_an_unexpected_exception_is_500_without_its_details(caplog: pytest.LogCaptureFixture) -> None:
    with serving(tokenizer=Broken()) as world:
        response = httpx.post(f"{world.url}/v1/completions", json=ENDLESS)
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert "secret" not in response.text
    assert response.headers["x-request-id"] in caplog.text
    assert "secret detail" in caplog.text


@pytest.mark.slow
def test_an_answer_of_many_choices_that_is_not_read_is_ended_and_nobody_elses() -> None:
    """By what waits to be read of all its choices; each has far less than that. What is beside it comes to its end."""
    with serving(slots=8, before_step=lambda plan: None) as world:
        told = "say:" + "told to the end " * 60 + "|"
        body = json.dumps({"model": MODEL, "prompt": told})
        unread = send(world, {**ENDLESS_CHAT, "stream": True, "n": 7, "logprobs": True, "top_logprobs": 20})
        world.wait_until(lambda stats: stats.running == 7)
        beside = httpx.post(f"{world.url}/v1/completions", content=body, headers=JSON, timeout=120)
        assert beside.json()["choices"][0]["text"] == "told to the end " * 60
        world.wait_until_idle()
        assert sorted(world.observer.reasons) == ["abort"] * 7 + ["stop"]
        unread.close()

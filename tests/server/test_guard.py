"""What stands before the framework's routes: bodies that are whole, right and not too long, no forged paths or hosts."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bento_kv.server.clients import Clients
from bento_kv.server.guard import Guard, OneLine
from bento_kv.server.preparations import Preparations
from bento_kv.server.protocol import NativeRequest
from tests.server.world import JSON

LONG = "1" * 4301


class Framework:
    """Reads what it gets and answers with it."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message.get("more_body", False)
        self.bodies.append(body)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})


HEADERS = [(name.encode(), value.encode()) for name, value in JSON.items()]


def guard(framework: ASGIApp, clients: Clients | None = None) -> Guard:
    return Guard(
        framework,
        bodies={"/generate": NativeRequest},
        max_body_bytes=10_000,
        preparations=Preparations(160_000),
        clients=clients or Clients(),
    )


def ask(
    path: str, content: Any, headers: dict[str, str] | None = None, clients: Clients | None = None
) -> tuple[httpx.Response, list[bytes]]:
    framework = Framework()

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(guard(framework, clients))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as http:
            return await http.post(path, content=content, headers=JSON if headers is None else headers)

    return asyncio.run(run()), framework.bodies


def test_a_right_body_comes_through_as_it_is() -> None:
    body = json.dumps({"prompt": "Hi", "max_tokens": 3, "temperature": 0}).encode()
    response, bodies = ask("/generate", body)
    assert (response.status_code, bodies) == (200, [body])
    assert ask("/livez", b"anything", {})[1] == [b"anything"]


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"", 400, "empty"),
        (b"{", 400, "not valid JSON"),
        (b"5", 400, "must be a JSON object, got 5"),
        (b"{}", 400, "'prompt' is required"),
        (b'{"prompt": ["secret"]}', 400, "'prompt' must be a string, got a list"),
        (b'{"prompt": "secret", "max_time": NaN}', 400, "NaN is not a JSON number"),
        (b'{"prompt": "secret", "max_time": 1e999}', 400, "too large"),
        (b'{"prompt": "secret", "max_tokens": %s}' % LONG.encode(), 400, "too large"),
        (b'{"prompt": "secret", "max_tokens": %s}' % LONG[:900].encode(), 400, "'max_tokens' must be"),
        (b'{"prompt": "secret", "top_k": 3}', 400, "'top_k' is not a known field"),
        (b'{"prompt": "' + b"x" * 10_000 + b'"}', 413, "10000 bytes"),
    ],
    ids=lambda value: str(value[:40]) if isinstance(value, bytes) else "",
)
def test_a_wrong_body_never_reaches_the_framework(
    content: bytes, status: int, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    response, bodies = ask("/generate", content)
    assert (response.status_code, bodies) == (status, [])
    assert words in response.json()["error"]["message"]
    assert len(response.content) < 400
    assert "secret" not in response.text + caplog.text


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data", "application/x-www-form-urlencoded", ""])
def test_a_web_page_cannot_post_here(kind: str) -> None:
    response, bodies = ask("/generate", b'{"prompt": "Hi"}', {"content-type": kind} if kind else {})
    assert (response.status_code, bodies) == (415, [])


@pytest.mark.parametrize("kind", ["", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_who_sends_a_key_need_not_say_that_it_is_json(kind: str) -> None:
    """A web page cannot send one unasked. The framework is told in any case."""
    clients = Clients("secret", urgent_api_key="urgent")
    for key in ("secret", "urgent", " secret "):
        headers = {"authorization": f"Bearer {key}", **({"content-type": kind} if kind else {})}
        response, bodies = ask("/generate", b'{"prompt": "Hi"}', headers, clients)
        assert (response.status_code, bodies) == (200, [b'{"prompt": "Hi"}'])
    assert ask("/generate", b"--x", headers, clients)[0].status_code == 400
    assert (
        ask("/generate", b'{"prompt": "Hi"}', {**JSON, "authorization": "Bearer other"}, clients)[0].status_code == 401
    )


@pytest.mark.parametrize("begun", [False, True])
def test_an_answer_that_has_not_begun_ends_when_its_client_leaves(begun: bool) -> None:
    body = b'{"prompt": "Hi"}'
    sent: list[str] = []

    async def run() -> bool:
        left, ended = asyncio.Event(), asyncio.Event()
        incoming: list[Message] = [{"type": "http.request", "body": body}]

        async def receive() -> Message:
            if not incoming:
                await left.wait()
                return {"type": "http.disconnect"}
            return incoming.pop()

        async def send(message: Message) -> None:
            sent.append(message["type"])

        async def framework(scope: Scope, receive: Receive, send: Send) -> None:
            assert dict(scope["headers"])[b"content-type"] == b"application/json"
            assert (await receive())["body"] == body
            if begun:
                await send({"type": "http.response.start", "status": 200, "headers": []})
            left.set()
            try:
                assert (await receive())["type"] == "http.disconnect"
                await asyncio.sleep(0 if begun else 60)
            except asyncio.CancelledError:
                ended.set()
                raise

        scope = {"type": "http", "method": "POST", "path": "/generate", "headers": HEADERS, "query_string": b""}
        await guard(framework)(scope, receive, send)
        return ended.is_set()

    assert asyncio.run(run()) is not begun
    assert sent[0] == "http.response.start"


def test_nobody_is_sent_to_the_host_that_a_request_names() -> None:
    for path in ("/generate/", "/livez/", "/any/where/", "/any%0aforged", "/any%c2%85forged"):
        response, bodies = ask(path, b"{}", {**JSON, "host": "evil.example"})
        assert (response.status_code, bodies) == (404, [])


def test_a_path_makes_no_line_of_its_own_in_a_log() -> None:
    record = logging.LogRecord("bentoml.access", 20, "", 0, "%s (%s) %.3f", ("a", "path=/x\nforged\r\u2028", 1.5), None)
    assert OneLine().filter(record)
    assert record.getMessage() == "a (path=/x%0aforged%0d%2028) 1.500"

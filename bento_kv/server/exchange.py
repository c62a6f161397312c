"""One HTTP exchange over ASGI (https://asgi.readthedocs.io/en/latest/specs/www.html): a body read, an answer sent.

Starlette's own request and response are not used for this, because an exchange here has to notice a client that leaves
at any moment: neither uvicorn nor BentoML cancels a handler for that, and between server versions it shows as a message
`http.disconnect`, as an OSError from sending, or not at all.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bento_kv.server import jsontext
from bento_kv.server.clients import Caller
from bento_kv.server.problems import Problem, not_json, too_large

T = TypeVar("T")


def new_request_id() -> str:
    """A name for the log and for `x-request-id`."""
    return f"req_{uuid.uuid4().hex}"


CLIENT_CLOSED_REQUEST = 499  # nginx's status for a client that left; nobody reads it but the access log


class Disconnected(Exception):
    """The client is gone, and with it the reason to go on."""


class Exchange:
    """A request and the answer to it. `id` is its name in the log and in the answer's `x-request-id`, `caller` who sent it,
    once that has been found out."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.id = new_request_id()
        self.scope = scope
        self.caller = Caller()
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.path_params: Mapping[str, Any] = scope.get("path_params", {})
        self.headers = Headers(scope=scope)
        self._receive = receive
        self._send = send
        self._streaming = False
        self._started = False

    async def read_body(self, limit: int) -> bytes:
        """The body.

        Raises:
            Problem: it is not sent as JSON by who has no key, is larger than `limit` bytes, or Content-Length says so; no more is read in any case.
            Disconnected: the client left before its end.
        """
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and self.caller.key is None:  # no web page has a key to send
            raise not_json()
        declared = self.headers.get("content-length", "")
        if declared.isascii() and declared.isdigit() and int(declared) > limit:
            raise too_large(limit)
        body = bytearray()
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            body += message.get("body", b"")
            if len(body) > limit:
                raise too_large(limit)
            if not message.get("more_body", False):
                return bytes(body)

    async def unless_disconnected(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which is cancelled when the client leaves. The body must have been read.

        Raises:
            Disconnected: the client left first.
        """
        working = asyncio.ensure_future(work)
        watching = asyncio.ensure_future(self._until_disconnected())
        try:
            await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise Disconnected
            return working.result()
        finally:
            working.cancel()
            watching.cancel()
            await asyncio.gather(working, watching, return_exceptions=True)

    async def hand_over(self, app: ASGIApp, body: bytes) -> None:
        """Have an app answer, which is given the body as JSON. Until its answer begins, it ends when the client leaves;
        after that it has to notice it by itself.

        Raises:
            Disconnected: the client left first.
        """
        begun = asyncio.Event()

        async def send(message: Message) -> None:
            begun.set()
            await self._send(message)

        headers = [pair for pair in self.scope["headers"] if pair[0] != b"content-type"]
        scope = {**self.scope, "headers": [*headers, (b"content-type", b"application/json")]}
        answering = asyncio.ensure_future(app(scope, _replayed(body, self._receive), send))
        watching = asyncio.ensure_future(self._until_disconnected())
        beginning = asyncio.ensure_future(begun.wait())
        try:
            await asyncio.wait((answering, watching, beginning), return_when=asyncio.FIRST_COMPLETED)
            if not answering.done() and not begun.is_set():
                raise Disconnected
            watching.cancel()
            await answering
        finally:
            tasks = (answering, watching, beginning)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _until_disconnected(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def send_json(self, document: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        """The whole answer."""
        await self.send_text(jsontext.dumps(document), status=status, headers=headers)

    async def send_text(self, text: str, *, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        """The whole answer, which is JSON already."""
        body = text.encode("utf-8")
        head = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
        await self._start(status, head)
        await self._to_client({"type": "http.response.body", "body": body})

    async def start_events(self) -> None:
        """The head of a stream of server-sent events. It goes out at once: time limits on the first byte of an answer
        must not run out while a request waits for a slot."""
        self._streaming = True
        head = {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-cache",
            "x-accel-buffering": "no",  # nginx would otherwise hold events back to fill its buffer
        }
        await self._start(200, head)

    async def send_events(self, *data: str) -> None:
        """Server-sent events, in one write."""
        body = "".join(f"data: {line}\n\n" for line in data).encode("utf-8")
        await self._to_client({"type": "http.response.body", "body": body, "more_body": True})

    async def end_events(self) -> None:
        """The end of the stream."""
        await self._to_client({"type": "http.response.body", "body": b""})

    async def send_problem(self, problem: Problem) -> None:
        """The answer to a request that failed; if its stream has begun, an event that ends it without `[DONE]`."""
        if self._streaming:
            await self.send_events(jsontext.dumps(problem.body))
            await self.end_events()
        else:
            await self.send_json(problem.body, status=problem.status, headers=problem.headers)

    async def abandon(self) -> None:
        """Nobody is left to answer. An answer is begun all the same: middleware that times the first byte would wait."""
        if not self._started:
            with suppress(Disconnected):
                await self._start(CLIENT_CLOSED_REQUEST, {"content-length": "0"})
                await self._to_client({"type": "http.response.body", "body": b""})

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self._started = True
        lines = {**headers, "x-request-id": self.id}
        encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in lines.items()]
        await self._to_client({"type": "http.response.start", "status": status, "headers": encoded})

    async def _to_client(self, message: dict[str, Any]) -> None:
        sending: Awaitable[None] = self._send(message)
        try:
            await sending
        except OSError as error:
            raise Disconnected from error


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body again, as one message, and then whatever comes."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay

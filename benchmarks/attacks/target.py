"""The server under attack, as an attacker sees it."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

ANSWER_SECONDS = 30.0  # what an attacker waits for an answer
_ADDRESS = "127.0.0.2"  # an attacker's own, so that it is another client than those who are attacked


@dataclass
class Target:
    """Where to aim, and what came of it.

    Attributes:
        url: of the server.
        outcomes: how often each outcome was seen; of an answer, its status.
    """

    url: str
    outcomes: Counter[str] = field(default_factory=Counter)

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port

    def client(self) -> httpx.AsyncClient:
        """For answers that are waited for."""
        limits = httpx.Limits(max_connections=None)
        transport = httpx.AsyncHTTPTransport(limits=limits, local_address=_ADDRESS)
        return httpx.AsyncClient(base_url=self.url, timeout=ANSWER_SECONDS, transport=transport)

    async def post(self, http: httpx.AsyncClient, path: str, body: Any) -> httpx.Response | None:
        """Send a body and note the status; None if there was no answer."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            response = await http.post(path, content=content, headers={"content-type": "application/json"})
        except httpx.HTTPError as error:
            self.outcomes[type(error).__name__] += 1
            return None
        self.outcomes[str(response.status_code)] += 1
        return response

    async def again(self, clients: int, times: int, once: Callable[[int], Awaitable[None]]) -> None:
        """Each of so many clients does it so many times, one after the other, with the turn's number."""

        async def client(number: int) -> None:
            for turn in range(times):
                await once(number * times + turn)

        await asyncio.gather(*map(client, range(clients)))

    async def raw(self, sent: bytes, *, receive_buffer: int | None = None) -> socket.socket | None:
        """A connection on which these bytes went out, and that is read by nobody; None if it was refused."""
        connection = socket.socket()
        connection.setblocking(False)
        connection.bind((_ADDRESS, 0))
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await loop.sock_connect(connection, self.address)
                await loop.sock_sendall(connection, sent)
        except (OSError, TimeoutError) as error:
            self.outcomes[type(error).__name__] += 1
            connection.close()
            return None
        self.outcomes["sent"] += 1
        return connection


def request(path: str, body: Mapping[str, Any], *, length: int | None = None) -> bytes:
    """The bytes of a POST request, which may say that its body is longer than it is."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {length or len(content)}\r\n\r\n".encode() + content


def words(count: int, seed: int = 0) -> str:
    """A text of so many words, no two of them alike in a row, so that no cache of a tokenizer helps."""
    return " ".join(f"w{(number * 7919 + seed * 104_729) % 1_000_003}" for number in range(count))

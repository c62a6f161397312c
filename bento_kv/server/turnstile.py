"""Requests that come in crowds: each client's in its turn.

A request costs a few milliseconds of the event loop before the engine has it, and what is ready at once is run in the order
of its coming. So whoever sends fifty at once would have everybody else wait for all fifty. Here one request begins in each
round of the event loop, of each client in turn, and the work that waits for a thread is taken in the same way.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.types import ASGIApp, Receive, Scope, Send

from bento_kv.server.clients import address_of


class Waiting:
    """Who waits, in the order of turns: one of each client, then the next of each."""

    def __init__(self) -> None:
        self._of_client: dict[str, deque[asyncio.Future[None]]] = {}  # in the order of their turns

    def add(self, client: str) -> asyncio.Future[None]:
        """A place behind all others of its client; it is done when its turn has come."""
        turn = asyncio.get_running_loop().create_future()
        self._of_client.setdefault(client, deque()).append(turn)
        return turn

    def let_one_go(self) -> bool:
        """Tell the next whose turn it is; False if nobody waits. Who has been cancelled waits no more."""
        while self._of_client:
            client = next(iter(self._of_client))
            others = self._of_client.pop(client)
            turn = others.popleft()
            if others:
                self._of_client[client] = others
            if not turn.done():
                turn.set_result(None)
                return True
        return False


class Places:
    """So many that may be in at once, the others let in by turns.

    Args:
        count: of places.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting = Waiting()

    @asynccontextmanager
    async def place(self, client: str) -> AsyncIterator[None]:
        """A place until the context ends; waits for one."""
        if self._free:
            self._free -= 1
        else:
            turn = self._waiting.add(client)
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():  # its turn had come
                    self._leave()
                raise
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        if not self._waiting.let_one_go():
            self._free += 1


class Turnstile:
    """ASGI middleware, outside of all else: one request begins in each round of the event loop, of each client in turn.

    Args:
        app: what requests are let in to.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._waiting = Waiting()
        self._turning = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if self._turning:
                await self._waiting.add(address_of(scope))
            else:
                self._turn()
        await self._app(scope, receive, send)

    def _turn(self) -> None:
        self._turning = True
        asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self._turning = False
        if self._waiting.let_one_go():
            self._turn()

"""Bounds on the work that bodies cause before a request is one of the engine's: parsing and tokenizing.

Bodies are counted by their bytes, since that is what they cost in time and in memory: all together, and each client's.
Short ones have a lane of their own, so that they do not wait behind long ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from bento_kv.engine.threads import in_thread
from bento_kv.errors import OutOfTimeError, QueueFullError, TokenizerError
from bento_kv.server.turnstile import Places

T = TypeVar("T")

_SHORT_BYTES = 32 * 1024
_SHORT_THREADS, _LONG_THREADS = 2, 1
_RETRY_SECONDS = 2.0  # about what a long body takes
_TIMEOUT = 60.0  # seconds; a long body takes a few


class _Lane:
    """So many threads, and since when each is at work."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._places = Places(threads)
        self._begun: dict[object, float] = {}

    def stalled(self, timeout: float) -> bool:
        """Whether all of its threads have been at work on one thing each for longer than they may."""
        now = time.monotonic()
        begun = list(self._begun.values())  # another thread may ask
        return len(begun) == self._threads and all(now - since > timeout for since in begun)

    async def run(self, work: Callable[[], T], ticket: object, client: str) -> T:
        """The result of `work` in a thread; `ticket` is at work meanwhile. Clients take turns."""
        async with self._places.place(client):
            self._begun[ticket] = time.monotonic()
            try:
                return await in_thread(work)
            finally:
                del self._begun[ticket]

    def __contains__(self, ticket: object) -> bool:
        return ticket in self._begun


class Preparations:
    """What is being prepared, and what waits for that. It belongs to one event loop.

    Args:
        limit: bytes of bodies at once; a client may have half of them.
        timeout: seconds that a body may take, the wait included. Nothing can interrupt a thread, so one that takes longer
            keeps its place, and its client has an answer.
    """

    def __init__(self, limit: int, *, timeout: float = _TIMEOUT) -> None:
        self._limit = limit
        self._timeout = timeout
        self._bytes: Counter[str] = Counter()  # by client
        self._short = _Lane(_SHORT_THREADS)
        self._long = _Lane(_LONG_THREADS)

    @property
    def bytes(self) -> int:
        """Of the bodies that are here now."""
        return self._bytes.total()

    @property
    def stalled(self) -> bool:
        """Whether nothing short, or nothing long, can be prepared any more, since what is at work does not end."""
        return self._short.stalled(self._timeout) or self._long.stalled(self._timeout)

    async def run(self, work: Callable[[], T], *, size: int, client: str) -> T:
        """The result of `work` in a thread. Who is cancelled while it waits is gone at once.

        Args:
            work: what to do with a body.
            size: its bytes.
            client: whose it is.

        Raises:
            QueueFullError: there is too much to do already.
            OutOfTimeError: it has waited too long for those before it.
            TokenizerError: it has taken too long itself; it counts until it ends.
        """
        lane, ticket = self._short if size <= _SHORT_BYTES else self._long, object()
        working = asyncio.ensure_future(self._counted(lane.run(work, ticket, client), size, client))
        try:
            await asyncio.wait([working], timeout=self._timeout)
        except asyncio.CancelledError:
            working.cancel()
            await asyncio.wait([working], timeout=self._timeout)
            raise
        if not working.done():
            working.cancel()
            if ticket in lane:
                raise TokenizerError(f"the model's tokenizer has not come to an end within {self._timeout:g} s")
            await asyncio.wait([working])
            raise OutOfTimeError(f"The request was not prepared within {self._timeout:g} s; try again later.")
        return working.result()

    async def _counted(self, work: Coroutine[Any, Any, T], size: int, client: str) -> T:
        with contextlib.closing(work), self._room(size, client):
            return await work

    @contextmanager
    def _room(self, size: int, client: str) -> Iterator[None]:
        if self._bytes[client] + size > self._limit // 2 or self.bytes + size > self._limit:
            raise QueueFullError(
                "Too many long requests are being prepared; try again later.", retry_after=_RETRY_SECONDS
            )
        self._bytes[client] += size
        try:
            yield
        finally:
            self._bytes[client] -= size
            if not self._bytes[client]:
                del self._bytes[client]

"""Bounds on the work that bodies cause before a request is one of the engine's: parsing and tokenizing.

Bodies are counted by their bytes, since that is what they cost in time and in memory: all together, and each client's.
Short ones have a lane of their own, so that they do not wait behind long ones.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from bento_kv.engine.threads import in_thread
from bento_kv.errors import QueueFullError

T = TypeVar("T")

_SHORT_BYTES = 32 * 1024
_SHORT_THREADS, _LONG_THREADS = 2, 1
_RETRY_SECONDS = 2.0  # about what a long body takes


class Preparations:
    """What is being prepared, and what waits for that. It belongs to one event loop.

    Args:
        limit: bytes of bodies at once; a client may have half of them.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes: Counter[str] = Counter()  # by client
        self._short = asyncio.Semaphore(_SHORT_THREADS)
        self._long = asyncio.Semaphore(_LONG_THREADS)

    @property
    def bytes(self) -> int:
        """Of the bodies that are here now."""
        return self._bytes.total()

    async def run(self, work: Callable[[], T], *, size: int, client: str) -> T:
        """The result of `work` in a thread. Who is cancelled while it waits is gone at once.

        Args:
            work: what to do with a body.
            size: its bytes.
            client: whose it is.

        Raises:
            QueueFullError: there is too much to do already.
        """
        with self._counted(size, client):
            async with self._short if size <= _SHORT_BYTES else self._long:
                return await in_thread(work)

    @contextmanager
    def _counted(self, size: int, client: str) -> Iterator[None]:
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

"""The bridge from the engine thread to asyncio: a request as an asynchronous iterator of its events."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Self

from bento_kv.engine.engine import Engine
from bento_kv.engine.request import Request, StepOutput, Submission
from bento_kv.engine.threads import in_thread
from bento_kv.errors import UnreadError

UNREAD_LIMIT = 32_768  # of about a hundred bytes each: what `_weight` counts


class TokenStream:
    """A submission's events, in order; the last one has a `finish_reason`, and then the iteration stops.

        async with TokenStream(engine, submission) as stream:
            async for output in stream: ...

    Entering the context submits the request, leaving it aborts the request unless it has finished, so a client that goes
    away, an exception and a cancellation all free the slot.

    A stream that is not read ends its request, once so much of it waits that a client cannot be merely slow.

    Raises (on entering):
        RequestError, ContextLengthError, QueueFullError, EngineClosedError: as `Engine.submit`.

    Raises (on reading):
        UnreadError: the request was ended because its events were not read.
    """

    def __init__(self, engine: Engine, submission: Submission) -> None:
        self.request_id = submission.id
        self._engine = engine
        self._submission = submission
        self._events: asyncio.Queue[StepOutput] = asyncio.Queue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._finished = False
        self._unread = 0  # by `_weight`
        self._overrun = False

    async def __aenter__(self) -> Self:
        await _submitted(self._engine, [self._begin()])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._finished:
            self._finished = True
            self._engine.abort(self.request_id)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StepOutput:
        if self._loop is None:
            raise RuntimeError("a token stream is read inside `async with`")
        if self._finished:
            raise StopAsyncIteration
        if self._overrun and self._events.empty():
            self._finished = True
            raise UnreadError
        output = await self._events.get()
        self._unread -= _weight(output)
        self._finished = output.finish_reason is not None
        return output

    def _begin(self) -> Request:
        """The request, to be submitted by whoever runs in the loop that will read."""
        if self._loop is not None:
            raise RuntimeError("a token stream can be entered once")
        self._loop = asyncio.get_running_loop()
        return Request.from_submission(self._submission, self._emit, contextvars.copy_context())

    def _emit(self, output: StepOutput) -> None:
        """Hand an event over; runs on the engine thread."""
        assert self._loop is not None  # set before the engine learns of the request
        try:
            self._loop.call_soon_threadsafe(self._keep, output)
        except RuntimeError:  # the loop is closed, so nobody will ever read this
            self._engine.abort(self.request_id)

    def _keep(self, output: StepOutput) -> None:
        """Keep an event until it is read; runs in the loop."""
        if self._overrun:
            return
        self._unread += _weight(output)
        self._overrun = self._unread > UNREAD_LIMIT and output.finish_reason is None
        if self._overrun:
            self._engine.abort(self.request_id)
        self._events.put_nowait(output)


def _weight(output: StepOutput) -> int:
    """What an event takes in memory, in about a hundred bytes."""
    return 4 + sum(1 + len(entry.top) for entry in output.logprobs)


@asynccontextmanager
async def entered(engine: Engine, streams: Sequence[TokenStream]) -> AsyncIterator[Sequence[TokenStream]]:
    """Enter streams of an engine together: it accepts all of them or none. Leaving aborts what has not finished."""
    await _submitted(engine, [stream._begin() for stream in streams])
    async with AsyncExitStack() as stack:
        for stream in streams:
            stack.push_async_exit(stream)
        yield streams


async def _submitted(engine: Engine, requests: Sequence[Request]) -> None:
    """Submit requests, in a thread: what that costs grows with their prompts. If it is cancelled, none of them stays."""
    try:
        await in_thread(engine.submit_all, requests)
    except asyncio.CancelledError:
        for request in requests:
            engine.abort(request.id)
        raise

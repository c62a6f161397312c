"""The bridge from the engine thread to asyncio: a request as an asynchronous iterator of its events."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from bento_kv.engine.backlog import Backlog
from bento_kv.engine.engine import Engine
from bento_kv.engine.request import Request, StepOutput, Submission
from bento_kv.engine.threads import in_thread
from bento_kv.errors import UnreadError


class TokenStream:
    """A submission's events, in order; the last one has a `finish_reason`, and then the iteration stops.

        async with TokenStream(engine, submission) as stream:
            async for output in stream: ...

    Entering the context submits the request, leaving it aborts the request unless it has finished, so a client that goes
    away, an exception and a cancellation all free the slot.

    An answer that is not read is ended, all of its choices, once so much of it waits that a client cannot be merely slow.

    Raises (on entering):
        RequestError, ContextLengthError, QueueFullError, EngineClosedError: as `Engine.submit`.

    Raises (on reading):
        UnreadError: the request was ended because its events were not read.
    """

    def __init__(self, engine: Engine, submission: Submission) -> None:
        self.request_id = submission.id
        self._engine = engine
        self._submission = submission
        self._events: asyncio.Queue[StepOutput | None] = asyncio.Queue()  # None: there is more, and it was not kept
        self._loop: asyncio.AbstractEventLoop | None = None
        self._answer: _Answer | None = None
        self._finished = False

    async def __aenter__(self) -> Self:
        await _submitted(self._engine, _begin(self._engine, [self]))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._finished:
            self._finished = True
            self._engine.abort(self.request_id)
        while not self._events.empty():
            self._forget(self._events.get_nowait())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StepOutput:
        if self._loop is None:
            raise RuntimeError("a token stream is read inside `async with`")
        if self._finished:
            raise StopAsyncIteration
        output = await self._events.get()
        self._forget(output)
        self._finished = output is None or output.finish_reason is not None
        if output is None:
            raise UnreadError
        return output

    def _begin(self, answer: _Answer) -> Request:
        """The request, to be submitted by whoever runs in the loop that will read."""
        if self._loop is not None:
            raise RuntimeError("a token stream can be entered once")
        self._loop = asyncio.get_running_loop()
        self._answer = answer
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
        assert self._answer is not None
        if self._finished or self._answer.cut:
            return
        self._events.put_nowait(output)
        if not self._answer.backlog.add(output) and output.finish_reason is None:
            self._answer.cut = True
            for stream in self._answer.streams:
                stream._cut()

    def _cut(self) -> None:
        if not self._finished:
            self._engine.abort(self.request_id)
            self._events.put_nowait(None)

    def _forget(self, output: StepOutput | None) -> None:
        if output is not None and self._answer is not None:
            self._answer.backlog.remove(output)


@dataclass(slots=True)
class _Answer:
    """The streams of one request, what waits to be read of them together, and whether that was too much."""

    streams: Sequence[TokenStream]
    backlog: Backlog
    cut: bool = False


@asynccontextmanager
async def entered(engine: Engine, streams: Sequence[TokenStream]) -> AsyncIterator[Sequence[TokenStream]]:
    """Enter streams of an engine together: it accepts all of them or none. Leaving aborts what has not finished."""
    await _submitted(engine, _begin(engine, streams))
    async with AsyncExitStack() as stack:
        for stream in streams:
            stack.push_async_exit(stream)
        yield streams


def _begin(engine: Engine, streams: Sequence[TokenStream]) -> list[Request]:
    """The requests of streams that are one answer."""
    client = streams[0]._submission.client if streams else None
    answer = _Answer(streams, engine.backlogs.of(client))
    return [stream._begin(answer) for stream in streams]


async def _submitted(engine: Engine, requests: Sequence[Request]) -> None:
    """Submit requests, in a thread: what that costs grows with their prompts. If it is cancelled, none of them stays."""
    try:
        await in_thread(engine.submit_all, requests)
    except asyncio.CancelledError:
        for request in requests:
            engine.abort(request.id)
        raise

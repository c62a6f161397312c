"""Bounds on connections, which uvicorn has none of: how many there are, and how long each may wait for its client.

A client that sends half a head, half a body or nothing, or that does not read its answer, holds a connection, and with it a
descriptor of the process, the memory of what it has sent, and the server's end. uvicorn's own limits begin behind a
whole head (`limit_concurrency`) or behind an answer (`timeout_keep_alive`).
"""

from __future__ import annotations

import asyncio
import fcntl
import math
import struct
import termios
from collections import Counter
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from bento_kv.errors import EngineClosedError
from bento_kv.server.clients import network
from bento_kv.server.exchange import new_request_id
from bento_kv.server.jsontext import dumps
from bento_kv.server.problems import Problem, problem_of, too_slow

if TYPE_CHECKING:
    # What is here of a protocol of uvicorn's, all of which have it; a class of its own would shadow it.
    class _Base(asyncio.Protocol):
        connections: set[Any]
        cycle: _Cycle | None
        flow: _Flow
        loop: asyncio.AbstractEventLoop
        timeout_keep_alive_task: asyncio.TimerHandle | None
        transport: asyncio.Transport

        def shutdown(self) -> None: ...

        def timeout_keep_alive_handler(self) -> None: ...

else:
    _Base = object

_LOOK_SECONDS = 1.0  # how often a connection is looked at, and with it how exact its limits are
_READING_SECONDS = 0.01  # in which the event loop reads what has come
_SHARE = 3 / 4  # of the connections that other addresses leave, for one address
_NO_ROOM = problem_of(
    EngineClosedError("The server has no room for this connection, or is shutting down; try again later."),
    request_id="",
)
Phase = Literal["idle", "head", "body", "answer", "unread"]


class _Cycle(Protocol):
    """A request and its answer, as uvicorn has them."""

    more_body: bool
    response_started: bool
    response_complete: bool
    disconnected: bool
    message_event: asyncio.Event


class _Flow(Protocol):
    write_paused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """What connections of one process may take.

    Attributes:
        connections: at once, of which an address has three quarters of what others leave at most, so that no address can
            fill them. One more takes the place of one that waits for its client, to ask or to read: of the address that
            has the most, the one that has waited longest, but of none that has fewer than its own. If there is none such,
            it gets 503.
        head_seconds: to the end of the next request's head, from the connection's beginning or the last answer's end. While
            nothing of a next request has come, uvicorn's `timeout_keep_alive` holds instead.
        body_seconds: from there to the end of its body; 408 after that.
        unread_seconds: in which a client that leaves an answer unread has to take some of it.
    """

    connections: int = 512
    head_seconds: float = 10.0
    body_seconds: float = 60.0
    unread_seconds: float = 30.0

    def of(self, phase: Phase) -> float | None:
        """Seconds that a connection may stay in a phase; None without limit."""
        return {"head": self.head_seconds, "body": self.body_seconds, "unread": self.unread_seconds}.get(phase)


def bounded(protocol: type[asyncio.Protocol], limits: ConnectionLimits) -> type[asyncio.Protocol]:
    """One of uvicorn's HTTP protocols with these limits, for `uvicorn.Config.http_protocol_class`."""
    return cast("type[asyncio.Protocol]", type("BoundedProtocol", (_Bounded, protocol), {"limits": limits}))


class _Bounded(_Base):
    limits: ConnectionLimits
    _state: tuple[Phase, object] = ("head", None)
    _since = 0.0  # when it was first seen in that state
    _looking: asyncio.TimerHandle | None = None
    host = ""  # the address of its client, as clients are told apart

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.host = network((transport.get_extra_info("peername") or ("",))[0])
        self._since = self.loop.time()
        self._looking = self.loop.call_later(_LOOK_SECONDS, self._look)
        if not self._has_room():
            self._end(_NO_ROOM)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._looking is not None:
            self._looking.cancel()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """The server stops. Who has not sent a whole request yet is told to ask another one."""
        phase = self._phase()
        if phase == "body":
            self._end(_NO_ROOM)
        elif phase == "idle" and _has_unread(self.transport):
            self.loop.call_later(_READING_SECONDS, self.shutdown)
        else:
            super().shutdown()

    def timeout_keep_alive_handler(self) -> None:
        """Its client has not asked again for as long as it may, unless the next request has come and was not read yet: to
        close then would reset the connection under a client that has done nothing wrong."""
        if _has_unread(self.transport):
            self.timeout_keep_alive_task = self.loop.call_later(_READING_SECONDS, self.timeout_keep_alive_handler)
        else:
            super().timeout_keep_alive_handler()

    def waiting_since(self) -> float | None:
        """When it began to wait for its client; None if it does not."""
        phase = self._phase()
        if phase == "answer" or (phase == "idle" and _has_unread(self.transport)):
            return None
        return self._since

    def give_place(self) -> None:
        """End, for another one."""
        if self._phase() == "unread":
            self.transport.abort()
        else:
            self._end(_NO_ROOM)

    def _has_room(self) -> bool:
        """Whether there is room for it, or one of the others gives its place, as `ConnectionLimits.connections` says."""
        ours = [each for each in self.connections if isinstance(each, _Bounded)]
        crowd = Counter(each.host for each in ours)
        mine = crowd[self.host]
        if mine <= math.ceil(_SHARE * (self.limits.connections - (len(ours) - mine))):
            return True
        others = [each for each in ours if each is not self and crowd[each.host] >= mine]
        waiting = {each: since for each in others if (since := each.waiting_since()) is not None}
        if not waiting:
            return False
        min(waiting, key=lambda each: (-crowd[each.host], waiting[each])).give_place()
        return True

    def _look(self) -> None:
        """End the connection if it has been in its phase for too long, and look again later."""
        if self not in self.connections:
            return  # another protocol has taken it over
        phase = self._phase()
        limit = self.limits.of(phase)
        coming = phase == "head" and _has_unread(self.transport)
        if limit is not None and self.loop.time() - self._since > limit and not coming:
            if phase == "unread":
                self.transport.abort()
                return
            self._end(too_slow(limit) if phase == "body" else None)
        self._looking = self.loop.call_later(_LOOK_SECONDS, self._look)

    def _phase(self) -> Phase:
        state = self._now()
        if state != self._state:
            self._state, self._since = state, self.loop.time()
        return state[0]

    def _now(self) -> tuple[Phase, object]:
        """The phase, and what differs when the phase has begun anew."""
        cycle = self.cycle
        if self.flow.write_paused or self.transport.is_closing():
            return "unread", _untaken_bytes(self.transport)
        if cycle is None:
            return "head", None
        if cycle.response_complete:
            return ("head" if cycle.more_body or self.timeout_keep_alive_task is None else "idle"), cycle
        return ("body" if cycle.more_body else "answer"), cycle

    def _end(self, problem: Problem | None) -> None:
        """Close the connection; a request that has no answer yet gets this one."""
        cycle = self.cycle
        if problem is not None and (cycle is None or not cycle.response_started):
            self.transport.write(_raw(problem))
        if cycle is not None:  # to those who wait for it, the client has left
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.close()


def _untaken_bytes(transport: asyncio.Transport) -> int:
    """What was written and the client has not taken: what waits here, and what the kernel has, which takes it in large
    pieces only."""
    return transport.get_write_buffer_size() + _kernel_bytes(transport, termios.TIOCOUTQ)


def _has_unread(transport: asyncio.Transport) -> bool:
    """Whether the kernel has something from the client that the event loop has not read yet."""
    return not transport.is_closing() and _kernel_bytes(transport, termios.FIONREAD) > 0


def _kernel_bytes(transport: asyncio.Transport, queue: int) -> int:
    (count,) = struct.unpack("i", fcntl.ioctl(transport.get_extra_info("socket"), queue, bytes(4)))
    return int(count)


def _raw(problem: Problem) -> bytes:
    """The bytes of an answer that no framework sends."""
    body = dumps(problem.body).encode()
    headers = {
        "content-type": "application/json",
        "content-length": len(body),
        "connection": "close",
        "x-request-id": new_request_id(),
        **problem.headers,
    }
    lines = [f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body

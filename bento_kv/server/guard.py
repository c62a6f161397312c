"""What stands before the routes of the framework that serves: they get bodies that are whole, right and not too long, and
no path or host out of which an answer or a line of a log could be forged.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial

from starlette.types import ASGIApp, Receive, Scope, Send

from bento_kv.server.clients import Clients, current_caller
from bento_kv.server.exchange import Disconnected, Exchange
from bento_kv.server.jsontext import shorten
from bento_kv.server.preparations import Preparations
from bento_kv.server.problems import not_found, problem_of, unauthorized
from bento_kv.server.protocol import Body
from bento_kv.server.validation import parse

_CONTROLS = {code: f"%{code:02x}" for code in (*range(0x20), 0x7F, 0x85, 0x2028, 0x2029)}


class Guard:
    """ASGI middleware.

    Args:
        app: what is guarded.
        bodies: what a POST to each of these paths must have as its body.
        max_body_bytes: larger ones get 413.
        preparations: where bodies are read into requests.
        clients: who may send them, and with which priority. What is behind finds the caller in `current_caller`.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        bodies: Mapping[str, type[Body]],
        max_body_bytes: int,
        preparations: Preparations,
        clients: Clients,
    ) -> None:
        self._app = app
        self._bodies = dict(bodies)
        self._limit = max_body_bytes
        self._preparations = preparations
        self._clients = clients

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send)
        try:
            try:
                slash = exchange.path != "/" and exchange.path.endswith("/")
                if slash or not exchange.path.isprintable():
                    # The framework would redirect to whatever host the request names, and routes match no line breaks.
                    raise not_found(shorten(exchange.path))
                body = None
                if exchange.method == "POST" and exchange.path in self._bodies:
                    body = await self._checked_body(exchange)
            except Disconnected:
                raise
            except Exception as error:  # noqa: BLE001 - each becomes an answer, and the log has what is unexpected
                await exchange.send_problem(problem_of(error, request_id=exchange.id))
                return
            if body is None:
                await self._app(scope, receive, send)
            else:
                await exchange.hand_over(self._app, body)
        except Disconnected:
            await exchange.abandon()

    async def _checked_body(self, exchange: Exchange) -> bytes:
        caller = self._clients.caller(exchange.scope)
        if caller is None:
            raise unauthorized()
        exchange.caller = caller
        current_caller.set(caller)
        body = await exchange.read_body(self._limit)
        check = partial(parse, body, self._bodies[exchange.path])
        checking = self._preparations.run(check, size=len(body), client=caller.client)
        asked = await exchange.unless_disconnected(checking)
        caller.check_priority(getattr(asked, "priority", None))
        return body


class OneLine(logging.Filter):
    """Writes control characters of a record's arguments as URLs do, so that a path cannot begin a line of its own."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(arg.translate(_CONTROLS) if isinstance(arg, str) else arg for arg in record.args)
        return True

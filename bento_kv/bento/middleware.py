"""BentoML's own middleware, kept from remembering every request.

- Its time limit on the first byte of an answer leaves a timer behind each, which keeps some 5 kB until the time is over.
- Its metrics have a label for the path, whatever it is: each path that somebody makes up is a dozen series, for ever.
- It logs a traceback for each error of a service, whoever made it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable, Iterator
from http import HTTPStatus
from itertools import pairwise
from typing import Any

from bentoml._internal.server.http.instruments import RunnerTrafficMetricsMiddleware
from bentoml._internal.server.http.traffic import TimeoutMiddleware
from bentoml.exceptions import BentoMLException
from starlette.applications import Starlette
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bento_kv.server.exchange import Exchange
from bento_kv.server.problems import gateway_timeout

_OTHER_PATH = "other"
_TRUE_PATH = "bento_kv.path"


def mend_middleware(app: Starlette) -> None:
    """Mend it in the app that BentoML made of a service, once that has started and before its first request."""
    layers = list(_layers(app))
    for above, layer in pairwise(layers):
        if isinstance(layer, TimeoutMiddleware):
            above.app = FirstByteTimeout(layer.app, layer.timeout)
        elif isinstance(layer, RunnerTrafficMetricsMiddleware):
            above.app = _OtherPaths(layer, frozenset(_fixed_paths(app.routes)))
            layer.app = _TruePaths(layer.app)


def _layers(app: Starlette) -> Iterator[Any]:
    """The middleware from outside in, as far as each says what is inside it."""
    layer: Any = app.middleware_stack
    while layer is not None:
        yield layer
        layer = getattr(layer, "app", None)


def _fixed_paths(routes: Iterable[BaseRoute], prefix: str = "") -> Iterator[str]:
    for route in routes:
        if isinstance(route, Mount):
            yield from _fixed_paths(route.routes, prefix + route.path)
        elif isinstance(route, Route) and not route.param_convertors:
            yield prefix + route.path


class Refusal(BentoMLException):
    """An error that is an answer, and nothing that went wrong here."""


class NoRefusals(logging.Filter):
    """Leaves the tracebacks of refusals out of the log; those of 5xx, whose words BentoML keeps from clients, are a line."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, Refusal):
            return True
        record.msg, record.args, record.exc_info = "%s", (str(error),), None
        return int(error.error_code) >= HTTPStatus.INTERNAL_SERVER_ERROR


class FirstByteTimeout:
    """ASGI middleware: 504 if an answer has not begun in time. Nothing of an answer that has begun stays behind.

    Args:
        app: who answers.
        timeout: seconds.
    """

    def __init__(self, app: ASGIApp, timeout: float) -> None:
        self._app = app
        self._timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._timeout) as limit:

                async def begin(message: Message) -> None:
                    limit.reschedule(None)
                    await send(message)

                await self._app(scope, receive, begin)
        except TimeoutError:
            if not limit.expired():
                raise
            await Exchange(scope, receive, send).send_problem(gateway_timeout(self._timeout))


class _OtherPaths:
    """Gives all paths but those that the app has one name, for what stands between this and `_TruePaths`."""

    def __init__(self, app: ASGIApp, paths: Collection[str]) -> None:
        self._app = app
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self._paths:
            scope = {**scope, _TRUE_PATH: scope["path"], "path": _OTHER_PATH}
        await self._app(scope, receive, send)


class _TruePaths:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if _TRUE_PATH in scope:
            scope = {**scope, "path": scope[_TRUE_PATH]}
        await self._app(scope, receive, send)

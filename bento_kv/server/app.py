"""The OpenAI-compatible routes, as an ASGI app to mount with `bentoml.asgi_app`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from bento_kv.server import prompts
from bento_kv.server.backend import Backend
from bento_kv.server.clients import Clients
from bento_kv.server.exchange import Disconnected, Exchange, new_request_id
from bento_kv.server.jsontext import dumps, dumps_in_pieces, shorten
from bento_kv.server.preparations import Preparations
from bento_kv.server.problems import method_not_allowed, no_such_model, not_found, problem_of, unauthorized
from bento_kv.server.streaming import answer

DEFAULT_MAX_BODY_BYTES = 1024 * 1024

BODIES = 16  # of the largest size may be in preparation at once
T = TypeVar("T")
Handler = Callable[[Exchange], Awaitable[None]]


def openai_app(
    backend: Backend | Callable[[], Backend],
    *,
    api_key: str | None = None,
    urgent_api_key: str | None = None,
    min_priority: int = 0,
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
    preparations: Preparations | None = None,
) -> Starlette:
    """The OpenAI-compatible API of one model.

    Every answer has an `x-request-id`, every error OpenAI's form.

    Args:
        backend: the model being served, or what finds it: called once a request, since an app is mounted before BentoML
            makes the service that has the model.
        api_key: what clients have to send as `Authorization: Bearer KEY`, on every route; nothing if None. Of several,
            white space between them, each is a client of its own: they take turns, and share no cached prefix.
        urgent_api_key: likewise, keys whose requests may have any priority.
        min_priority: the most urgent priority that others may ask for; lower is more urgent.
        max_body_bytes: larger request bodies get 413.
        preparations: bounds on the bodies that are prepared at once, where other routes share them; its own unless given.

    Raises:
        ValueError: the key is empty, which would look like protection and be none.
    """
    clients = Clients(api_key, urgent_api_key=urgent_api_key, min_priority=min_priority)
    find_backend = backend if callable(backend) else lambda: backend
    api = _Api(find_backend, max_body_bytes, preparations or Preparations(BODIES * max_body_bytes))
    routes: dict[str, dict[str, Handler]] = {
        "/v1/chat/completions": {"POST": api.chat},
        "/v1/completions": {"POST": api.completions},
        "/v1/models": {"GET": api.models},
        "/v1/models/{id:path}": {"GET": api.model},
        "/v1/verification": {"GET": api.verification},
        "/v1/tokenize": {"POST": api.tokenize},
        "/v1/detokenize": {"POST": api.detokenize},
        "/v1": {},
        "/v1/{rest:path}": {},  # BentoML passes on only what a route matches, and would answer the rest in its own form
    }
    app = Starlette(
        routes=[Route(path, _Endpoint(handlers, clients)) for path, handlers in routes.items()],
        exception_handlers={404: _not_found},
    )
    app.router.redirect_slashes = False  # a redirect would be an answer in nobody's form
    return app


class _Endpoint:
    """A route: who may come in, which handler, and what becomes of its exceptions."""

    def __init__(self, handlers: Mapping[str, Handler], clients: Clients) -> None:
        self._handlers = dict(handlers)
        if "GET" in handlers:
            self._handlers["HEAD"] = handlers["GET"]  # the server leaves the body out
        self._clients = clients

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send)
        try:
            try:
                await self._handler_for(exchange)(exchange)
            except Disconnected:
                raise
            except Exception as error:  # noqa: BLE001 - each becomes an answer, and the log has what is unexpected
                await exchange.send_problem(problem_of(error, request_id=exchange.id))
        except Disconnected:
            await exchange.abandon()

    def _handler_for(self, exchange: Exchange) -> Handler:
        caller = self._clients.caller(exchange.scope)
        if caller is None:
            raise unauthorized()
        exchange.caller = caller
        if not self._handlers:
            raise not_found(shorten(exchange.path))
        if exchange.method not in self._handlers:
            raise method_not_allowed(exchange.method, exchange.path, ", ".join(self._handlers))
        return self._handlers[exchange.method]


class RequireApiKey:
    """ASGI middleware that asks for the key on every path but those that orchestrators probe.

    Args:
        app: what is protected.
        api_key: what clients have to send as `Authorization: Bearer KEY`, white space around it left out; any one of
            several, with white space between them.
        urgent_api_key: keys that are taken likewise.
        open_metrics: whether `/metrics` is open. It tells what others do, in sums.

    Raises:
        ValueError: the key is empty, which would look like protection and be none.
    """

    OPEN = frozenset({"/livez", "/readyz", "/healthz"})

    def __init__(
        self, app: ASGIApp, *, api_key: str, urgent_api_key: str | None = None, open_metrics: bool = False
    ) -> None:
        self._app = app
        self._clients = Clients(api_key, urgent_api_key=urgent_api_key)
        self._open = self.OPEN | ({"/metrics"} if open_metrics else set())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self._open and self._clients.caller(scope) is None:
            with suppress(Disconnected):
                await Exchange(scope, receive, send).send_problem(unauthorized())
            return
        await self._app(scope, receive, send)


async def _not_found(request: Request, error: Exception) -> Response:
    problem = not_found(shorten(request.url.path))
    headers = {"x-request-id": new_request_id()}
    return Response(dumps(problem.body), problem.status, headers, media_type="application/json")


class _Api:
    """The handlers. What grows with a request's size runs in a thread, so that it delays no other request's tokens."""

    def __init__(self, find_backend: Callable[[], Backend], max_body_bytes: int, preparations: Preparations) -> None:
        self._find_backend = find_backend
        self._limit = max_body_bytes
        self._preparations = preparations

    async def chat(self, exchange: Exchange) -> None:
        await self._generate(exchange, prompts.chat_prompts)

    async def completions(self, exchange: Exchange) -> None:
        await self._generate(exchange, prompts.completion_prompts)

    async def tokenize(self, exchange: Exchange) -> None:
        await self._send_result(exchange, prompts.tokenize)

    async def detokenize(self, exchange: Exchange) -> None:
        await self._send_result(exchange, prompts.detokenize)

    async def models(self, exchange: Exchange) -> None:
        await exchange.send_json({"object": "list", "data": [_model_object(self._find_backend())]})

    async def model(self, exchange: Exchange) -> None:
        backend, name = self._find_backend(), exchange.path_params["id"]
        if name not in backend.model_names:
            raise no_such_model(name, backend.model_id)
        await exchange.send_json(_model_object(backend))

    async def verification(self, exchange: Exchange) -> None:
        await exchange.send_json(dict(self._find_backend().verification))

    async def _send_result(self, exchange: Exchange, compute: Callable[[bytes, Backend], dict[str, Any]]) -> None:
        body = await exchange.read_body(self._limit)
        backend = self._find_backend()
        result = self._prepared(exchange, body, lambda: dumps_in_pieces(compute(body, backend)))
        await exchange.send_text(await exchange.unless_disconnected(result))

    async def _generate(self, exchange: Exchange, prepare: prompts.Prepare) -> None:
        body = await exchange.read_body(self._limit)
        await exchange.unless_disconnected(self._answer(exchange, body, prepare))

    async def _answer(self, exchange: Exchange, body: bytes, prepare: prompts.Prepare) -> None:
        backend = self._find_backend()
        request, encoded = await self._prepared(exchange, body, partial(prepare, body, backend))
        await answer(exchange, backend, request, encoded)

    async def _prepared(self, exchange: Exchange, body: bytes, work: Callable[[], T]) -> T:
        return await self._preparations.run(work, size=len(body), client=exchange.caller.client)


def _model_object(backend: Backend) -> dict[str, Any]:
    """OpenAI's model object, and `max_model_len` as vLLM adds it."""
    return {
        "id": backend.model_id,
        "object": "model",
        "created": backend.created,
        "owned_by": "bento_kv",
        "max_model_len": backend.max_length,
    }

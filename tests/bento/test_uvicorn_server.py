"""What is set in uvicorn's server behind BentoML's back."""

from __future__ import annotations

import asyncio
import base64
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from bento_kv.bento.uvicorn_server import believe_no_header, bound_connections, keep_connections
from bento_kv.server.connections import ConnectionLimits


async def _who(request: Request) -> PlainTextResponse:
    assert request.client is not None
    return PlainTextResponse(request.client.host)


@contextmanager
def running() -> Iterator[int]:
    """A server that is set as those of the service are. Gives its port."""
    config = uvicorn.Config(Starlette(routes=[Route("/", _who)]), port=0, log_config=None)
    config.load()
    server = uvicorn.Server(config)
    bound_connections(server, ConnectionLimits())
    believe_no_header(server)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.parametrize(("believed", "expected"), [(None, "127.0.0.1"), ("127.0.0.1", "192.0.2.1")])
def test_a_client_is_where_it_connects_from(
    believed: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FORWARDED_ALLOW_IPS", raising=False)
    if believed is not None:
        monkeypatch.setenv("FORWARDED_ALLOW_IPS", believed)
    with running() as port:
        assert httpx.get(f"http://127.0.0.1:{port}/", headers={"X-Forwarded-For": "192.0.2.1"}).text == expected


@pytest.mark.parametrize(
    ("said", "expected"), [([], 75), (["--timeout-keep-alive", "5"], 5), (["--timeout-keep-alive=7"], 7)]
)
def test_unused_connections_are_kept_for_longer_than_clients_keep_them(
    said: list[str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["worker", *said])
    given = int(said[-1].rpartition("=")[2]) if said else 5  # as the worker's command line has been read
    server = uvicorn.Server(uvicorn.Config(Starlette(), timeout_keep_alive=given, log_config=None))
    keep_connections(server)
    assert server.config.timeout_keep_alive == expected


def test_a_handshake_for_websockets_is_a_plain_request(caplog: pytest.LogCaptureFixture) -> None:
    key = base64.b64encode(b"0" * 16).decode()
    headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": key, "Sec-WebSocket-Version": "13"}
    with running() as port, caplog.at_level(logging.ERROR):
        assert httpx.get(f"http://127.0.0.1:{port}/", headers=headers).text == "127.0.0.1"
    assert not caplog.records

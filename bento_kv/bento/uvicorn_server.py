"""uvicorn's server in this process. BentoML makes it and passes few settings on, so that the rest is set here."""

from __future__ import annotations

import os
import resource
import signal
import sys
from dataclasses import replace

import uvicorn
from starlette.applications import Starlette
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from bento_kv.server.connections import ConnectionLimits, bounded
from bento_kv.server.turnstile import Turnstile

# Clients keep unused connections for a while, and one that the server closes first is reset under a request that is on its
# way. httpx and openai keep them for 5 s, as uvicorn does, aiohttp for 15 s, load balancers for 60 s; nginx serves with 75 s.
_KEEP_ALIVE_SECONDS = 75
_OTHER_DESCRIPTORS = 64  # that a process has besides connections: files of the model and of metrics, its event loop's


def running_server() -> uvicorn.Server | None:
    """The server that runs in this process, by the signals that it handles; None if another one does, or none."""
    return server_behind(signal.getsignal(signal.SIGTERM))


def server_behind(handler: object) -> uvicorn.Server | None:
    """The server whose method a signal's handler is."""
    owner = getattr(handler, "__self__", None)
    return owner if isinstance(owner, uvicorn.Server) else None


def bound_connections(server: uvicorn.Server, limits: ConnectionLimits) -> None:
    """Bound the connections that a server accepts from now on, by `limits` and by the descriptors that the process may
    have."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors != resource.RLIM_INFINITY:
        limits = replace(limits, connections=max(1, min(limits.connections, descriptors - _OTHER_DESCRIPTORS)))
    server.config.http_protocol_class = bounded(server.config.http_protocol_class, limits)
    server.config.ws_protocol_class = None  # nothing here speaks it, and its connections would be out of bounds


def keep_connections(server: uvicorn.Server) -> None:
    """Keep unused connections for longer than clients do, unless who runs the server has said for how long."""
    if not any(word.partition("=")[0] == "--timeout-keep-alive" for word in sys.argv):
        server.config.timeout_keep_alive = _KEEP_ALIVE_SECONDS


def believe_no_header(server: uvicorn.Server) -> None:
    """Let clients be known by the address that they connect from, unless who runs the server has said whom to believe.

    uvicorn believes `X-Forwarded-For` from this machine, where any process, and any client of a proxy that passes the header
    on as it is, could say to be somebody else with every request.
    """
    if "FORWARDED_ALLOW_IPS" not in os.environ and isinstance(server.config.loaded_app, ProxyHeadersMiddleware):
        server.config.loaded_app = server.config.loaded_app.app


def take_turns(server: uvicorn.Server) -> None:
    """Let requests in by turns of their clients, before anything is done for them."""
    server.config.loaded_app = Turnstile(server.config.loaded_app)


def app_of(server: uvicorn.Server) -> Starlette:
    """What BentoML made of the service."""
    assert isinstance(server.config.app, Starlette)
    return server.config.app

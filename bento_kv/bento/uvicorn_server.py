"""uvicorn's server in this process. BentoML makes it and passes few settings on, so that the rest is set here."""

from __future__ import annotations

import resource
import signal
from dataclasses import replace

import uvicorn
from starlette.applications import Starlette

from bento_kv.server.connections import ConnectionLimits, bounded

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


def app_of(server: uvicorn.Server) -> Starlette:
    """What BentoML made of the service."""
    assert isinstance(server.config.app, Starlette)
    return server.config.app

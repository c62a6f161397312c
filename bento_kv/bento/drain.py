"""SIGTERM and SIGINT, gently: what runs is finished, what is new is refused, and then the server stops."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from types import FrameType

from bento_kv.bento.uvicorn_server import server_behind
from bento_kv.engine.engine import Engine

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LAST_WORDS_SECONDS = 2.0  # for the ends of answers, at least, once the engine has stopped
_CLEANUP_SECONDS = 10.0  # for whatever else the server and the framework do at their end


class Drain:
    """Goes between a signal and the server that would stop at it.

    uvicorn stops to accept connections at once, and who connects while its answers in progress end is left hanging, as
    the socket stays open in BentoML's supervisor. So the engine is closed first, with the server up: readiness is false,
    new requests get 503 with Retry-After, accepted ones end. Then the server gets the signal, and what is left of the
    time for clients that do not read their answers. SIGINT while it drains ends the process at once: BentoML's
    supervisor sends it at a second signal of its own. SIGTERM again does nothing, as one stop may send it twice: systemd
    sends it to every process of a service, and the supervisor to its workers besides.

    Args:
        engine: who drains.
        timeout: seconds after which requests that have not ended are aborted.
    """

    def __init__(self, engine: Engine, *, timeout: float) -> None:
        self._engine = engine
        self._timeout = timeout
        self._server = signal.getsignal(signal.SIGTERM)
        self._thread: threading.Thread | None = None
        self._drained = False
        self._passed_on = False

    def install(self) -> None:
        """Take the signals over.

        Raises:
            ValueError: this is not the main thread, which is the only one to get signals.
        """
        self._server = signal.getsignal(signal.SIGTERM)
        for number in SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._drained and not self._passed_on:
            self._passed_on = True
            self._pass_on(number, frame)
        elif self._thread is None:
            logger.info("draining: requests in progress have %g seconds", self._timeout)
            self._thread = threading.Thread(target=self._run, name="bento_kv-drain", daemon=True)
            self._thread.start()
        elif number == signal.SIGINT:
            _die_of(number)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if callable(self._server):
            self._server(number, frame)
        else:  # nobody else wants it: the default, which ends the process
            _die_of(number)

    def _run(self) -> None:
        began = time.monotonic()
        if not self._engine.close(drain=True, timeout=self._timeout):
            # Its requests will never end, and the server would wait for them for ever.
            logger.critical("the engine hangs in a step that nothing can interrupt; the process ends")
            os._exit(1)
        left = max(self._timeout - (time.monotonic() - began), _LAST_WORDS_SECONDS)
        if (server := server_behind(self._server)) is not None:
            server.config.timeout_graceful_shutdown = left  # type: ignore[assignment] # it takes any number
        self._drained = True
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(left + _CLEANUP_SECONDS)
        logger.critical("the server does not stop; the process ends")
        os._exit(1)


def _die_of(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)

"""SIGTERM, gently: what runs is finished, what is new is refused, and then the server stops."""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType

from bento_kv.engine.engine import Engine

logger = logging.getLogger(__name__)


class Drain:
    """Goes between SIGTERM and the server that would stop at it.

    uvicorn stops to accept connections at once, and who connects while its answers in progress end is left hanging, as
    the socket stays open in BentoML's supervisor. So the engine is closed first, with the server up: readiness is false,
    new requests get 503 with Retry-After, accepted ones end. Then the server gets the signal. A second signal goes to
    it at once.

    Args:
        engine: who drains.
        timeout: seconds after which requests that have not ended are aborted.
    """

    def __init__(self, engine: Engine, *, timeout: float) -> None:
        self._engine = engine
        self._timeout = timeout
        self._server = signal.getsignal(signal.SIGTERM)
        self._thread: threading.Thread | None = None

    def install(self) -> None:
        """Take the signal over.

        Raises:
            ValueError: this is not the main thread, which is the only one to get signals.
        """
        self._server = signal.signal(signal.SIGTERM, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._thread is None:
            logger.info("draining: requests in progress have %g seconds", self._timeout)
            self._thread = threading.Thread(target=self._run, name="bento_kv-drain", daemon=True)
            self._thread.start()
        elif callable(self._server):
            self._server(number, frame)
        else:  # nobody else wants it: the default, which ends the process
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)

    def _run(self) -> None:
        if not self._engine.close(drain=True, timeout=self._timeout):
            # Its requests will never end, and the server would wait for them for ever.
            logger.critical("the engine hangs in a step that nothing can interrupt; the process ends")
            os._exit(1)
        os.kill(os.getpid(), signal.SIGTERM)

"""Notices a step that hangs: nothing can interrupt it, but whoever runs the process can be told."""

from __future__ import annotations

import logging
import time
from types import TracebackType

logger = logging.getLogger(__name__)


class Watchdog:
    """A context around each step; `stalled` may be asked from any thread.

    It has no thread of its own: it is as alive as those who ask.

    Args:
        timeout: seconds after which a step counts as hanging.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._began: float | None = None
        self._reported: float | None = None  # the step that was reported

    @property
    def stalled(self) -> bool:
        """Whether the step that runs has done so for longer than the timeout. False again once it ends."""
        began = self._began
        if began is None or time.perf_counter() - began < self.timeout:
            return False
        if self._reported != began:
            self._reported = began
            logger.critical("a step has been running for more than %g seconds; the engine is not alive", self.timeout)
        return True

    @property
    def patience(self) -> float:
        """Seconds until the step that runs counts as hanging; the timeout if none runs."""
        began = self._began
        return self.timeout if began is None else max(0.0, self.timeout - (time.perf_counter() - began))

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        began, self._began = self._began, None
        if began is not None and self._reported == began:
            logger.critical("the step ended after %.1f seconds; the engine goes on", time.perf_counter() - began)

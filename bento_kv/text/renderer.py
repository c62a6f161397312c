"""The process that renders chat templates, as those who ask see it: see `rendering`."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

from bento_kv.errors import DecoderError
from bento_kv.text.rendering import CPU_SECONDS, read_frame, write_frame

# What Python and the C library need; nothing else is a template's business, least of all a key.
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "LC_TIME", "TZ")


class Renderer:
    """Starts the process when it is asked something, and another when a template has ended it. It answers one request at a
    time, those of all threads.

    Args:
        cpu_seconds: of a processor, that a request may take.
    """

    def __init__(self, cpu_seconds: int = CPU_SECONDS) -> None:
        self._cpu_seconds = cpu_seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0  # who started it: a fork has the same pipes, and would mix up the answers

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer, as `rendering.answer` gives it.

        Raises:
            TypeError, ValueError, RecursionError: the request is not JSON.
            DecoderError: the process cannot be started, or is ended by others.
        """
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                write_frame(process.stdin, request)
                answer = read_frame(process.stdout)
            except OSError:
                answer = None
            if answer is not None:
                return answer
            return self._over(self._forget())

    def close(self) -> None:
        """End the process, if there is one; it is started again if it is asked something."""
        with self._lock:
            if self._process is not None and self._owner == os.getpid():
                self._forget()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is not None:
            self._forget()  # others ended it while it had nothing to do
        if self._process is None or self._owner != os.getpid():
            environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "bento_kv.text.rendering", str(self._cpu_seconds)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env={**environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                    start_new_session=True,  # Ctrl+C is for the server, which drains
                )
            except OSError as error:
                raise DecoderError(f"the process that renders chat templates cannot be started: {error}") from error
            self._owner = os.getpid()
        return self._process

    def _forget(self) -> int:
        """Let the process go. Returns how it ended."""
        process, self._process = self._process, None
        assert process is not None
        process.kill()  # it may be gone
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                assert pipe is not None
                pipe.close()
        return process.wait()

    def _over(self, status: int) -> dict[str, Any]:
        """What a template had too much of, as the process' end tells."""
        if status == -signal.SIGXCPU:
            return {"over": f"{self._cpu_seconds} seconds of a processor"}
        if status == -signal.SIGSEGV:
            return {"over": "the stack of a process"}
        raise DecoderError(f"the process that renders chat templates ended with status {status}")


RENDERER = Renderer()
atexit.register(RENDERER.close)

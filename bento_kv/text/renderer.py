"""The processes that render chat templates, as those who ask see them: see `rendering`."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from bento_kv.errors import DecoderError
from bento_kv.text.rendering import CPU_SECONDS, processor_seconds, read_frame, write_frame

PROCESSES = 3  # at most: one for each thread that prepares requests, so that none waits for another's template
_PATIENCE = 0.25  # seconds to wait for a process that is there; to start one takes about as long
# What Python and the C library need; nothing else is a template's business, least of all a key.
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "LC_TIME", "TZ")


class Renderer:
    """Starts the process when it is asked something, and another when a template has ended it. It answers one request at a
    time, those of all threads.

    Args:
        cpu_seconds: of a processor, that a request may take; a short one has less, see `processor_seconds`.
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
        body = json.dumps(request).encode()
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                write_frame(process.stdin, body)
                frame = read_frame(process.stdout)
            except OSError:
                frame = None
            if frame is None:
                return _over(self._forget(), processor_seconds(len(body), self._cpu_seconds))
        answer: dict[str, Any] = json.loads(frame)
        return answer

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


class Renderers:
    """Several, of which one more is started when all others are busy for longer than that takes. It answers as many requests
    at a time, so that a template that takes long for one client's messages holds up no others.

    Args:
        count: of processes, at most.
        cpu_seconds: as of a `Renderer`.
    """

    def __init__(self, count: int = PROCESSES, cpu_seconds: int = CPU_SECONDS) -> None:
        self._count = count
        self._cpu_seconds = cpu_seconds
        self._made: list[Renderer] = []
        self._free: list[Renderer] = []
        self._changed = threading.Condition()

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """As `Renderer.ask`."""
        with self._one() as renderer:
            return renderer.ask(request)

    def close(self) -> None:
        """End the processes; they are started again if they are asked something."""
        for renderer in self._made:
            renderer.close()

    @contextlib.contextmanager
    def _one(self) -> Iterator[Renderer]:
        """The one that was used last of those that are free, or another one."""
        with self._changed:
            self._changed.wait_for(lambda: self._free, _PATIENCE if self._made else 0.0)
            if not self._free and len(self._made) < self._count:
                self._free.append(Renderer(self._cpu_seconds))
                self._made.append(self._free[-1])
            self._changed.wait_for(lambda: self._free)
            renderer = self._free.pop()
        try:
            yield renderer
        finally:
            with self._changed:
                self._free.append(renderer)
                self._changed.notify()


def _over(status: int, seconds: int) -> dict[str, Any]:
    """What a template had too much of, as the process' end tells."""
    if status == -signal.SIGXCPU:
        return {"over": f"{seconds} seconds of a processor"}
    if status == -signal.SIGSEGV:
        return {"over": "the stack of a process"}
    raise DecoderError(f"the process that renders chat templates ended with status {status}")


RENDERERS = Renderers()
atexit.register(RENDERERS.close)

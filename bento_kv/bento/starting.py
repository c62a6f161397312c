"""The server and its workers: what keeps one from starting ends the other, and no worker outlives its server.

BentoML starts a worker that has ended again, for ever. A fault at the first start would be the same every time: the worker
tells its server the sentence and ends it, and the server's exit code says that it did not do what it was asked to. Once a
worker has started, a fault may pass (memory that others have now), and the other workers go on meanwhile.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from bento_kv.disk import scratch
from bento_kv.errors import BentoKVError, first_line

_SERVER = "BENTO_KV_SERVER"  # id of the process, and the file for the sentence
_LOOK_SECONDS = 1.0
_SWITCH_SECONDS = 0.001  # Python's own is 0.005


def supervise() -> None:
    """Let this process be the server of the workers that it starts from now on."""
    stack = contextlib.ExitStack()
    told = stack.enter_context(scratch("serve")) / "fault"
    os.environ[_SERVER] = f"{os.getpid()}:{told}"
    atexit.register(_end, os.getpid(), told, stack)


def _end(server: int, told: Path, stack: contextlib.ExitStack) -> None:
    if os.getpid() != server:
        return  # a fork that is not a server
    sentence = told.read_text(encoding="utf-8") if told.exists() else ""
    stack.close()
    if sentence:
        print(f"Error: {sentence}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(1)  # the only way from here to an exit code


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """What goes wrong in here ends this worker's server, with a sentence. Without a server it is raised."""
    server, told = _server()
    if server is None:
        yield
        return
    threading.Thread(target=_outlive_nobody, args=(server,), name="bento_kv-server", daemon=True).start()
    started = told.with_name("started")
    try:
        yield
    except Exception as error:
        if not started.exists():
            try:
                told.write_text(_sentence(error), encoding="utf-8")
            finally:
                os.kill(server, signal.SIGTERM)
        raise
    with contextlib.suppress(OSError):  # a full disk is no fault of this worker
        started.touch()


def settle() -> None:
    """Once all is loaded: let no thread keep the others waiting for long.

    The garbage collector would walk through all that was loaded again and again, which takes some 80 ms each time. And a
    thread that wants to go on waits for one switch interval each time that another computes in Python; a token takes
    several such waits.
    """
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(_SWITCH_SECONDS)


def _server() -> tuple[int | None, Path]:
    """The process that started this one to serve, if that is what it is, and where it is told of a fault."""
    number, _, told = os.environ.get(_SERVER, "").partition(":")
    if number and not psutil.pid_exists(int(number)):
        raise SystemExit("the server of this worker was killed before it had started")
    return (os.getppid() if number == str(os.getppid()) else None), Path(told)


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, BentoKVError) else f"{type(error).__name__}: {first_line(error)}"


def _outlive_nobody(server: int) -> None:
    """A server that is killed tells its workers nothing; they would keep its port."""
    while os.getppid() == server:
        time.sleep(_LOOK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)

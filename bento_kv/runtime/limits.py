"""Limits for graphs that somebody else made: a run that does not end is ended, and one cannot take all memory.

They hold in the process itself. The runtime looks at the flag of a run's options between nodes, within loops too, and lets
Python's threads go on meanwhile; an allocation that the system refuses ends a run with the name of its node. A process of
its own would add a second start and nothing that these lack, but for a single node that computes for ever: for that one,
and for a load, the process ends itself.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from bento_kv.errors import GraphLimitError
from bento_kv.host import available_memory
from bento_kv.runtime.memory import within_memory

_GRACE = 15.0  # seconds that a node may go on after its run was told to end
_NOT_DONE = 2  # the exit code of a command that could not judge

_SECONDS: ContextVar[float | None] = ContextVar("seconds", default=None)
_NODE = re.compile(r"while running (\w+) node\. Name:'([^']*)'")
_MEMORY = re.compile(
    "failed to allocate|bad_alloc|bad allocation|cannot allocate memory|size overflow|exceeds the supported maximum",
    re.IGNORECASE,
)
_ENDED = "terminate flag"


@contextmanager
def within_limits(seconds: float) -> Iterator[None]:
    """Let no run of a graph take longer, and this process take no more memory of its own than the machine has left.

    Args:
        seconds: that one run, or one load, may take.
    """
    token = _SECONDS.set(seconds)
    try:
        with within_memory(available_memory()):
            yield
    finally:
        _SECONDS.reset(token)


def run(
    session: ort.InferenceSession, names: Sequence[str], feeds: Mapping[str, NDArray[np.generic]]
) -> list[NDArray[np.generic]]:
    """Run a session within the limits that are set, if any are.

    Raises:
        GraphLimitError: it took too long, or more memory than there is.
        Exception: the runtime's own.
    """
    options = ort.RunOptions()
    options.log_severity_level = 4  # an error is raised, and need not be printed besides
    with timed("a run of the graph", options):
        try:
            results: list[NDArray[np.generic]] = session.run(list(names), dict(feeds), options)
        except Exception as error:
            raise_if_limit(error)
            raise
    return results


@contextmanager
def timed(what: str, options: ort.RunOptions | None = None) -> Iterator[None]:
    """End what takes too long: a run by its options, and, where that does not end it, the process.

    Args:
        what: it is, in words.
        options: of a run.
    """
    seconds = _SECONDS.get()
    if seconds is None:
        yield
        return
    timers = [threading.Timer(seconds + (_GRACE if options is not None else 0.0), _give_up, (what, seconds))]
    if options is not None:
        timers.append(threading.Timer(seconds, setattr, (options, "terminate", True)))
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()


def raise_if_limit(error: Exception) -> None:
    """What the runtime says of a limit, as an error of its own.

    Raises:
        GraphLimitError: it is about one.
    """
    text = str(error)
    node = _NODE.search(text)
    where = f"its {node[1]} node {node[2]}".rstrip() if node else "the graph"
    if _ENDED in text and (seconds := _SECONDS.get()) is not None:
        raise GraphLimitError(_too_long("a run of the graph", seconds)) from error
    if isinstance(error, MemoryError) or _MEMORY.search(text):
        size = re.search(r"buffer of size (\d+)", text)
        asked = f" ({int(size[1]) / 1e9:.3g} GB at once)" if size else ""
        raise GraphLimitError(
            f"{where} asks for more memory than there is{asked}: nothing can be said of a graph that does not run. Export "
            "again without it, or use a machine with more memory"
        ) from error


def _too_long(what: str, seconds: float) -> str:
    return (
        f"{what} took more than {seconds:g} s, and was ended: a loop in it may not end, or its sizes explode. If the model "
        "is that large, allow more with --time-limit"
    )


def _give_up(what: str, seconds: float) -> None:
    with suppress(OSError):
        sys.stderr.write(f"Error: {_too_long(what, seconds)}\n")
        sys.stderr.flush()
    os._exit(_NOT_DONE)

"""Locks among processes: the kernel drops one with the process that holds it, however that ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def lock(file: int, *, wait: bool) -> bool:
    """Whether the lock is ours now. Where the file system has no locks nobody gets one, and nothing is a leftover."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


@contextmanager
def alone(file: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold a lock among processes for as long as this lasts; whoever is killed holds it no longer.

    Args:
        file: of the lock, made if need be; where none can be made, nobody is kept out.
        waiting: called once, if another process holds it.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        held = _open_lock(file)
    except OSError:
        yield
        return
    try:
        if not lock(held, wait=False):
            waiting()
            lock(held, wait=True)
        yield
    finally:
        os.close(held)


def _open_lock(file: Path) -> int:
    """For reading where another user made it: only locks of some network file systems ask for more."""
    try:
        return os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError:
        return os.open(file, os.O_RDONLY | os.O_CLOEXEC)

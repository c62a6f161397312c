"""What is written is there whole or not at all, whatever ends the process that writes it.

All is written beside its place, under a name of our own, and takes its place by a rename. What a killed process leaves
beside is known by its name and by its lock: the kernel drops a lock with the process that holds it, in whichever container
that runs, so that what a living process works on is never taken for a leftover.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

_PART = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{16}\.bento_kv-part")
_RENAME_EXCHANGE = 2  # <linux/fs.h>
_AT_FDCWD = -100  # <fcntl.h>


def is_part(name: str) -> bool:
    """Whether a file or folder of that name is something unfinished of ours."""
    return _PART.fullmatch(name) is not None


def write_whole(path: Path, content: bytes) -> None:
    """Write a file; who reads meanwhile sees the old content or the new one. A link stays one, and leads to the new content.

    What is not a file, such as a terminal or a pipe, is written to as it is.

    Raises:
        OSError: it cannot be written; what was there before is there still.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    with beside(path.resolve()) as part:
        part.write_bytes(content)
        replace(part, path.resolve())


@contextmanager
def beside(target: Path) -> Iterator[Path]:
    """The name of a file on the target's file system, to be written and then to `replace` it; gone at the end if it is not.

    Raises:
        OSError: nothing can be written there.
    """
    clean(target.parent, target.name)
    part, held = _claimed(target.parent, target.name, _open_file)
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)
        os.close(held)


@contextmanager
def folder_beside(target: Path) -> Iterator[Path]:
    """An empty folder on the target's file system, to be filled and then to `replace` it; gone at the end if it is not.

    Raises:
        OSError: nothing can be written there.
    """
    with _folder(target.parent, target.name, 0o777) as folder:
        yield folder


@contextmanager
def scratch(purpose: str) -> Iterator[Path]:
    """An empty folder of this process alone, below TMPDIR; gone at the end, or at the next start if this one is killed.

    Raises:
        OSError: nothing can be written there.
    """
    with _folder(Path(tempfile.gettempdir()), f"bento_kv-{purpose}", 0o700) as folder:
        yield folder


@contextmanager
def _folder(parent: Path, name: str, mode: int) -> Iterator[Path]:
    clean(parent, name)
    folder, held = _claimed(parent, name, partial(_open_folder, mode=mode))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def _claimed(parent: Path, name: str, make: Callable[[Path], int]) -> tuple[Path, int]:
    """Something new, locked. Between its making and its lock another process may have taken it for a leftover."""
    if not parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(parent))
    while True:
        part = _part(parent, name)
        with suppress(FileNotFoundError):
            held = make(part)
            _lock(held, wait=True)
            if part.exists():
                return part, held
            os.close(held)


def _open_file(part: Path) -> int:
    return os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def _open_folder(part: Path, *, mode: int) -> int:
    part.mkdir(mode)
    return os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _part(parent: Path, name: str) -> Path:
    return parent / f".{name}.{secrets.token_hex(8)}.bento_kv-part"


def replace(part: Path, target: Path) -> None:
    """Let what was written beside take the target's place, safe on the disk before it does.

    A folder changes places with one that is there; where the system cannot do that in one step, there is nothing at the
    target for an instant.

    Raises:
        OSError: it cannot.
    """
    _sync(part)
    if not target.is_dir():
        os.replace(part, target)
    elif not _exchange(part, target):
        old = _part(target.parent, target.name)
        target.rename(old)
        part.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    _sync_names(target.parent)


def put(folder: Path, target: Path) -> None:
    """Let a folder that was written beside become the target, safe on the disk before it does.

    Raises:
        FileExistsError: something stands there by now.
        OSError: it cannot.
    """
    _sync(folder)
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        raise
    _sync_names(target.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Two names change places in one step; False where the system has no call for it."""
    call = getattr(ctypes.CDLL(None), "renameat2", None)
    if call is None:
        return False
    return bool(call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)


def _sync(path: Path) -> None:
    """A file, or a folder with all that is in it."""
    if path.is_dir():
        for entry in path.iterdir():
            _sync(entry)
    _sync_one(path)


def _sync_names(folder: Path) -> None:
    with suppress(OSError):  # some file systems sync no folder
        _sync_one(folder)


def _sync_one(path: Path) -> None:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def clean(parent: Path, name: str | None = None) -> None:
    """Remove what killed processes of this user left in a folder.

    Args:
        parent: where to look; if it cannot be read, nothing is done.
        name: of the target that it was to become; any, unless given.
    """
    with suppress(OSError):
        for entry in os.listdir(parent):
            found = _PART.fullmatch(entry)
            if found and name in (None, found["name"]):
                _remove_leftover(parent / entry)


def clean_scratch() -> None:
    """Remove what killed processes of this user left below TMPDIR."""
    clean(Path(tempfile.gettempdir()))


def _remove_leftover(path: Path) -> None:
    """Unless its process lives, or it is another user's."""
    with suppress(OSError):
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(file)
            if found.st_uid != os.geteuid() or not _lock(file, wait=False):
                return
            if stat.S_ISDIR(found.st_mode):
                shutil.rmtree(path)
            elif stat.S_ISREG(found.st_mode):
                path.unlink()
        finally:
            os.close(file)


def _lock(file: int, *, wait: bool) -> bool:
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
        held = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError:
        yield
        return
    try:
        if not _lock(held, wait=False):
            waiting()
            _lock(held, wait=True)
        yield
    finally:
        os.close(held)

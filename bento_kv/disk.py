"""What is written is there whole or not at all, whatever ends the process that writes it.

All is written beside its place, under a name of our own, and takes its place by a rename. What a killed process leaves
beside is known by its name and by its lock: the kernel drops a lock with the process that holds it, in whichever container
that runs, so that what a living process works on is never taken for a leftover.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from bento_kv.locks import lock

_PART = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{16}\.bento_kv-(?P<kind>part|old)")
_TRIES = 10  # to make something that no other process takes for a leftover
# A file that is a mount of its own takes no rename, nor does one in a folder that takes no new names.
_NO_RENAME = (errno.EBUSY, errno.EACCES, errno.EROFS)
_RENAME_EXCHANGE = 2  # <linux/fs.h>
_AT_FDCWD = -100  # <fcntl.h>


def is_part(name: str) -> bool:
    """Whether a file or folder of that name is something unfinished of ours, or set aside for it."""
    return _PART.fullmatch(name) is not None


def write_whole(path: Path, content: bytes) -> None:
    """Write a file; who reads meanwhile sees the old content or the new one. A link stays one, and leads to the new content.

    It keeps its mode, and its owner where that may be set. What is not a file, such as a terminal or a pipe, is written
    to as it is, and so is a file whose place no other can take.

    Raises:
        OSError: it cannot be written; what was there before is there still, unless no other can take its place.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    try:
        with beside(path.resolve()) as part:
            part.write_bytes(content)
            replace(part, path.resolve())
    except OSError as error:
        if error.errno not in _NO_RENAME or not path.is_file():
            raise
        path.write_bytes(content)


@contextmanager
def beside(target: Path) -> Iterator[Path]:
    """The name of a file on the target's file system, to be written and then to `replace` it; gone at the end if it is not.

    Raises:
        OSError: nothing can be written there.
    """
    clean(target.parent, target.name)
    part, held = _claimed(target.parent, target.name, _open_file)
    try:
        _own_alike(held, target)
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


def _claimed(parent: Path, name: str, make: Callable[[Path], int], kind: str = "part") -> tuple[Path, int]:
    """Something new, locked. Between its making and its lock another process may have taken it for a leftover."""
    for _ in range(_TRIES):
        if not parent.is_dir():
            break
        part = parent / f".{name}.{secrets.token_hex(8)}.bento_kv-{kind}"
        with suppress(FileNotFoundError):
            held = make(part)
            lock(held, wait=True)
            if part.exists():
                return part, held
            os.close(held)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(parent))


def _open_file(part: Path) -> int:
    return os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def _own_alike(file: int, target: Path) -> None:
    """Mode and owner of what a file is to replace, before anything that only its readers may see is in it."""
    with suppress(FileNotFoundError):
        found = target.stat()
        with suppress(PermissionError):
            os.fchown(file, found.st_uid, found.st_gid)
        with suppress(PermissionError):
            os.fchmod(file, stat.S_IMODE(found.st_mode))


def _open_folder(part: Path, *, mode: int) -> int:
    part.mkdir(mode)
    return os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def replace(part: Path, target: Path) -> None:
    """Let what was written beside take the target's place, safe on the disk before it does.

    A folder changes places with one that is there; where the system cannot do that in one step, there is nothing at the
    target for an instant.

    Raises:
        OSError: it cannot.
    """
    sync(part)
    if not target.is_dir():
        os.replace(part, target)
    elif not _exchange(part, target):
        with _set_aside(target):
            part.rename(target)
    _sync_names(target.parent)


def replace_together(folder: Path, target: Path, belonging: Sequence[Path]) -> None:
    """Let a file in a folder that was written beside, and those that belong to it, take the places of old ones.

    There is no target for an instant, so that the old one is never found beside what belongs to the new one, nor the new
    one beside what belongs to the old one.

    Args:
        folder: has files of the same names; of those that belong to the target, none or some.
        target: the file without which the others are of no use.
        belonging: beside the target; an old one that no new one replaces is removed.

    Raises:
        OSError: they cannot.
    """
    sync(folder)
    with _set_aside(target, *belonging):
        for place in (*belonging, target):
            if (folder / place.name).exists():
                os.replace(folder / place.name, place)
    _sync_names(target.parent)


@contextmanager
def _set_aside(target: Path, *belonging: Path) -> Iterator[None]:
    """Out of the way, for something else to take the target's place, last of all; back again if nothing does."""
    aside, held = _claimed(target.parent, target.name, partial(_open_folder, mode=0o700), "old")
    try:
        for path in (target, *belonging):
            if path.exists() or path.is_symlink():
                path.rename(aside / path.name)
        yield
    finally:
        with suppress(OSError):
            _settle(aside, target)
        os.close(held)


def _settle(aside: Path, target: Path) -> None:
    """Put back what was set aside if nothing took the target's place, the target last; else it is of no more use."""
    if not (target.exists() or target.is_symlink()):
        for entry in sorted(aside.iterdir(), key=lambda entry: entry.name == target.name):
            os.replace(entry, target.with_name(entry.name))
        _sync_names(target.parent)
    shutil.rmtree(aside)


def put(folder: Path, target: Path) -> None:
    """Let a folder that was written beside become the target, safe on the disk before it does.

    Raises:
        FileExistsError: something stands there by now.
        OSError: it cannot.
    """
    sync(folder)
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


def sync(path: Path) -> None:
    """Have a file, or a folder with all that is in it, safe on the disk."""
    if path.is_dir():
        for entry in path.iterdir():
            sync(entry)
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
    """Remove what killed processes of this user left in a folder, and put back what they had set aside.

    Args:
        parent: where to look; if it cannot be read, nothing is done.
        name: of the target that it was to become; any, unless given.
    """
    with suppress(OSError):
        for entry in os.listdir(parent):
            found = _PART.fullmatch(entry)
            if found and name in (None, found["name"]):
                _end_leftover(parent / entry, None if found["kind"] == "part" else parent / found["name"])


def clean_scratch() -> None:
    """Remove what killed processes of this user left below TMPDIR."""
    clean(Path(tempfile.gettempdir()))


def _end_leftover(path: Path, replaced: Path | None) -> None:
    """Unless its process lives, or it is another user's; `replaced` is what it was set aside for."""
    with suppress(OSError):
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(file)
            if found.st_uid != os.geteuid() or not lock(file, wait=False):
                return
            if stat.S_ISDIR(found.st_mode):
                shutil.rmtree(path) if replaced is None else _settle(path, replaced)
            elif stat.S_ISREG(found.st_mode):
                path.unlink()
        finally:
            os.close(file)

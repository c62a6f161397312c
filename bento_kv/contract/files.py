"""The files of a decoder directory: plain files below it, and those that were proven."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from io import BufferedReader
from pathlib import Path

from bento_kv.disk import is_part
from bento_kv.errors import IntegrityError

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
MANIFEST_FILE = "manifest.json"
VERIFICATION_FILE = "verification.json"

# Not in a manifest: the two records, what BentoML's model store adds, and where the export found its source.
ORIGIN_FILE = ".origin"
_OWN = frozenset({MANIFEST_FILE, VERIFICATION_FILE, "model.yaml", ORIGIN_FILE})
_HOW_TO_COPY = (
    "Copy the directory with `cp -rL`, which takes the files themselves (of a hub: `hf download --local-dir`)."
)


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def name_faults(names: Iterable[str]) -> Iterator[str]:
    """What keeps each name from being that of a plain file below a directory, on every file system, if anything does."""
    seen: set[str] = set()
    for name in names:
        parts = name.split("/")
        if name.startswith("/") or not {"", ".", ".."}.isdisjoint(parts):
            yield f"{name!r} is not a path below the directory"
        elif "\\" in name or not name.isprintable():
            yield f"{name!r} has characters that file names do not have"
        elif name in _OWN:
            yield f"{name!r} is not the manifest's to list"
        elif name.casefold() in seen:
            yield f"{name!r} is there twice, but for capital letters"
        seen.add(name.casefold())


def open_plain(directory: Path, name: str) -> BufferedReader:
    """Open a plain file below a directory, through no link: what is proven here cannot be changed elsewhere.

    Only the directory itself may be reached through links.

    Args:
        directory: of the decoder.
        name: of the file, with slashes where it lies in a folder.

    Raises:
        IntegrityError: it, or a folder on the way, is a link, a pipe or a device.
        OSError: it is not there, or cannot be read.
    """
    *folders, last = name.split("/")
    with ExitStack() as stack:
        where = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, where)
        try:
            for folder in folders:
                where = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=where)
                stack.callback(os.close, where)
            # A pipe that nobody writes to would be waited for.
            file = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=where)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
                raise _not_plain(directory / name) from error
            raise
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise _not_plain(directory / name)
        return os.fdopen(file, "rb")


def _not_plain(path: Path) -> IntegrityError:
    return IntegrityError(
        f"{path} is a link, or not a file; a decoder directory holds plain files, so that what was proven cannot be "
        f"changed elsewhere. {_HOW_TO_COPY}"
    )


def check_plain(directory: Path) -> None:
    """Whether a decoder directory holds plain files only.

    Raises:
        IntegrityError: one is a link, a pipe or a device.
    """
    for name in sorted(_files_of(directory)):
        open_plain(directory, name).close()


def hash_files(directory: Path) -> dict[str, str]:
    """Hashes of all files of a decoder directory but the records themselves.

    Raises:
        IntegrityError: one is not a plain file.
    """
    hashes = {}
    for name in sorted(_files_of(directory)):
        with open_plain(directory, name) as file:
            hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def check_hashes(directory: Path, files: Mapping[str, str]) -> None:
    """Compare every file's hash with the manifest's.

    Args:
        directory: of the decoder.
        files: hashes by name, as the manifest has them.

    Raises:
        IntegrityError: a file is missing, was changed, was added, or is not a plain file.
    """
    unknown = sorted(_files_of(directory) - set(files))
    if unknown:
        raise IntegrityError(f"{directory / unknown[0]} is not in the manifest; remove it or export again")
    for name, expected in files.items():
        with _open_listed(directory, name) as file:
            _check_hash(directory / name, hashlib.file_digest(file, "sha256").hexdigest(), expected)


def copy_files(directory: Path, files: Mapping[str, str], target: Path) -> None:
    """Copy what the manifest lists and the records, and nothing else; what arrives is compared with its hash.

    Args:
        directory: of the decoder.
        files: hashes by name, as the manifest has them.
        target: an empty folder.

    Raises:
        IntegrityError: as `check_hashes`.
        OSError: the target cannot be written.
    """
    for name, expected in {**files, MANIFEST_FILE: None, VERIFICATION_FILE: None}.items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with _open_listed(directory, name) as source, path.open("xb") as copy:
            while chunk := source.read(1 << 20):
                digest.update(chunk)
                copy.write(chunk)
        if expected is not None:
            _check_hash(directory / name, digest.hexdigest(), expected)


def _open_listed(directory: Path, name: str) -> BufferedReader:
    try:
        return open_plain(directory, name)
    except FileNotFoundError:
        path = directory / name
        raise IntegrityError(f"{path} is missing; the manifest lists it. Export the decoder again.") from None


def _check_hash(path: Path, found: str, expected: str) -> None:
    if found != expected:
        raise IntegrityError(
            f"{path} was changed after the export: its sha256 is not the manifest's. Export the decoder again."
        )


def _files_of(directory: Path) -> set[str]:
    """All that is in a decoder directory and not a folder, but the records and what a killed process left unfinished."""
    found: set[str] = set()
    for folder, folders, files in os.walk(directory):  # links to folders are listed, not followed
        here = Path(folder)
        folders[:] = [name for name in folders if not is_part(name)]
        links = [name for name in folders if (here / name).is_symlink()]
        found.update(str((here / name).relative_to(directory)) for name in (*files, *links) if not is_part(name))
    return found - _OWN

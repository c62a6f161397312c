"""A bound on the memory that this process takes of its own, beside the weight files that it maps.

Linux' RLIMIT_DATA counts every private mapping that may be written, and so do onnxruntime and safetensors map weights that
they only read: those pages are the file's, and the system takes them back when memory is short. So the limit moves with
what is mapped. Source: getrlimit(2), "RLIMIT_DATA", since Linux 4.7.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

_MAPS = Path("/proc/self/maps")
# One entry of a tensor's `external_data` in an ONNX file, as protobuf writes it, up to its path, whose length is a byte.
_LOCATION = re.compile(rb"\n\x08location\x12([\x01-\x7f])", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Bound:
    """What the process may take.

    Attributes:
        own: bytes that no file stands behind.
        ahead: bytes of files that may be mapped now.
        most: the soft limit that the process came with, -1 for none.
    """

    own: int
    ahead: int
    most: int

    def set(self) -> None:
        import resource

        wanted = self.own + self.ahead + _mapped_bytes()
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        limit = wanted if self.most == resource.RLIM_INFINITY else min(self.most, wanted)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


_BOUND: ContextVar[_Bound | None] = ContextVar("bound", default=None)


@contextmanager
def within_memory(room: int) -> Iterator[None]:
    """Let this process take so many bytes more of its own, where the system has such a limit."""
    try:
        import resource
    except ImportError:  # Windows
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    taken = int(getattr(psutil.Process().memory_info(), "data", 0)) - _mapped_bytes()
    try:
        with _bound(_Bound(taken + room, 0, soft)):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@contextmanager
def may_map(files: Iterable[Path]) -> Iterator[None]:
    """Let these files be mapped meanwhile, and stay so, whatever memory is left. They are looked for where there is a bound."""
    bound = _BOUND.get()
    if bound is None:
        yield
        return
    with _bound(replace(bound, ahead=bound.ahead + sum(file.stat().st_size for file in files if file.is_file()))):
        yield


@contextmanager
def _bound(bound: _Bound) -> Iterator[None]:
    token = _BOUND.set(bound)
    bound.set()
    try:
        yield
    finally:
        _BOUND.reset(token)
        if (outer := _BOUND.get()) is not None:
            outer.set()


def external_files(model: Path) -> Iterator[Path]:
    """The files beside a graph that hold its weights, so far as they can be told without an ONNX library."""
    locations = set[bytes]()
    with (
        suppress(OSError, ValueError),  # an empty one cannot be mapped
        model.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        for found in _LOCATION.finditer(content):
            locations.add(content[found.end() : found.end() + found[1][0]])
    for location in sorted(locations):
        yield model.parent / location.decode(errors="replace")


def _mapped_bytes() -> int:
    """Of files, in private mappings that may be written."""
    total = 0
    with suppress(OSError):
        for line in _MAPS.read_text().splitlines():
            span, permissions, _, _, inode = line.split(maxsplit=5)[:5]
            if permissions[1] == "w" and permissions[3] == "p" and inode != "0":
                first, last = span.split("-")
                total += int(last, 16) - int(first, 16)
    return total

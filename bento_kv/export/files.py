"""A graph and the weights beside it, written all or not at all."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bento_kv.disk import folder_beside, replace_together
from bento_kv.errors import ExportError


def data_beside(file: Path) -> Path:
    """Where the weights of a graph lie that are not in its own file."""
    return file.with_name(f"{file.name}.data")


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """A file of the output's name in a folder beside it; it and its weights take their places at the end, if it is there.

    Raises:
        ExportError: they cannot be written; what was there before is there still.
    """
    try:
        with folder_beside(output) as folder:
            target = folder / output.name
            yield target
            if target.exists():
                replace_together(folder, output, [data_beside(output)])
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise ExportError(f"{output} cannot be written: {reason}") from error

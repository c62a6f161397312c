"""Reading and writing, and what may not be overwritten."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import onnx_ir as ir
from google.protobuf.message import DecodeError

from bento_kv.errors import DecoderError, ExportError, first_line
from bento_kv.export.files import data_beside
from bento_kv.repair.weights import external_values, lift_external_constants


def read(file: Path) -> ir.Model:
    """The graph; weights beside it are not read before they are needed.

    Raises:
        DecoderError: it is not there, or not an ONNX file.
    """
    try:
        model = ir.load(file, format="protobuf")
    except OSError as error:
        raise DecoderError(f"{file} cannot be read: {error.strerror}") from error
    except DecodeError as error:
        raise DecoderError(
            f"{file} is not an ONNX file, or was cut off; nothing in it can be mended. Give a reference to export from"
        ) from error
    except Exception as error:  # what a graph that contradicts itself raises has no class of its own
        raise DecoderError(
            f"{file} has no graph in it that can be followed ({first_line(error)}), so there is nothing to mend. Give a "
            "reference to export from"
        ) from error
    if not len(model.graph):
        raise DecoderError(f"{file} has no graph in it, so there is nothing to mend")
    lift_external_constants(model)
    return model


def write(model: ir.Model, file: Path) -> None:
    """The graph; its weights beside are there already.

    Raises:
        ExportError: it is larger than a file of this format may be.
    """
    try:
        ir.save(model, file)
    except ValueError as error:  # protobuf's limit of 2 GiB
        raise ExportError(f"{file.name} is too large for one file: {error}") from error


def check_paths(file: Path, output: Path, *, force: bool) -> None:
    """Refuse what would overwrite the input, or anything else without `force`.

    Raises:
        ExportError: the output may not be written.
    """
    targets = [output, data_beside(output)]
    kept = [file]
    with suppress(DecoderError):  # of what cannot be read, no weights are known; it can still be exported anew
        kept += [file.parent / tensor.location for _, tensor in external_values(read(file))]
    for target in targets:
        if any(_same(target, other) for other in kept):
            raise ExportError(
                f"{target} is what is to be repaired, or its weights; the input is kept: give another output"
            )
    if output.is_dir():
        raise ExportError(f"{output} is a directory; give the name of a file in it")
    existing = [target for target in targets if target.exists() or target.is_symlink()]
    if existing and not force:
        raise ExportError(f"{existing[0]} exists already; give --force to replace it, or another output")
    if not output.parent.is_dir():
        raise ExportError(f"{output.parent} is not a directory; make it, or give another output")


def _same(one: Path, other: Path) -> bool:
    """One file under two names: by its path, through links of either kind."""
    if one.resolve() == other.resolve():
        return True
    return one.exists() and other.exists() and one.samefile(other)

"""Reading and writing: what may not be overwritten, weights beside the graph, all or nothing."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from bento_kv.errors import DecoderError, ExportError
from bento_kv.onnx_file import nested_graphs
from bento_kv.repair.records import Change


def external_tensors(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Weights that lie in files beside the graph."""
    constants = [
        attribute.t
        for graph in nested_graphs(model.graph)
        for node in graph.node
        for attribute in node.attribute
        if attribute.HasField("t")
    ]
    weights = [tensor for graph in nested_graphs(model.graph) for tensor in graph.initializer]
    return [tensor for tensor in [*weights, *constants] if uses_external_data(tensor)]


def read(file: Path) -> onnx.ModelProto:
    """The graph without what lies in other files.

    Raises:
        DecoderError: it is not there, or not an ONNX file.
    """
    try:
        model: onnx.ModelProto = onnx.load(file, format="protobuf", load_external_data=False)
    except OSError as error:
        raise DecoderError(f"{file} cannot be read: {error.strerror}") from error
    except DecodeError as error:
        raise DecoderError(
            f"{file} is not an ONNX file, or was cut off; nothing in it can be mended. Give a reference to export from"
        ) from error
    if not model.graph.node:
        raise DecoderError(f"{file} has no graph in it, so there is nothing to mend")
    return model


def check_paths(file: Path, output: Path, *, force: bool) -> None:
    """Refuse what would overwrite the input, or anything else without `force`.

    Raises:
        ExportError: the output may not be written.
    """
    targets = [output, output.with_name(f"{output.name}.data")]
    kept = [file]
    with suppress(DecoderError):  # of what cannot be read, no weights are known; it can still be exported anew
        kept += [file.parent / ExternalDataInfo(tensor).location for tensor in external_tensors(read(file))]
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


def find_weights(model: onnx.ModelProto, file: Path) -> tuple[dict[str, Path], list[Change], list[Change]]:
    """Where each file lies that the graph names: there, or under another name in the same folder.

    Returns:
        the files by the name that the graph has for them; what was relinked; what is missing.
    """
    needed: dict[str, int] = {}
    for tensor in external_tensors(model):
        info = ExternalDataInfo(tensor)
        end = int(info.offset or 0) + int(info.length or 0)
        needed[info.location] = max(needed.get(info.location, 0), end)
    found: dict[str, Path] = {}
    relinked, missing = [], []
    for location, size in needed.items():
        path = file.parent / location
        if path.is_file() and path.stat().st_size >= size:
            found[location] = path
            continue
        others = [
            other
            for other in sorted(file.parent.iterdir())
            if other.is_file() and not other.samefile(file) and other.stat().st_size == size
        ]
        if len(others) == 1 and size:
            found[location] = others[0]
            relinked.append(
                Change(
                    "external-data-missing",
                    location,
                    f"the weights were found as {others[0].name}, which has exactly the {size} bytes that the graph "
                    f"asks of {location}",
                )
            )
            continue
        missing.append(_missing(location, size, path, others))
    return found, relinked, missing


def _missing(location: str, size: int, path: Path, others: Sequence[Path]) -> Change:
    state = f"is there with {path.stat().st_size} bytes only" if path.is_file() else "is not there"
    several = (
        f"; {', '.join(other.name for other in others)} have that size, and nothing tells which it is" if others else ""
    )
    return Change(
        "external-data-missing",
        location,
        f"the weights file {location} {state}: it has to lie at {path} with at least {size} bytes{several}. Copy it there "
        "from where the graph was exported; weights cannot be made up",
    )


def carry_weights(model: onnx.ModelProto, found: dict[str, Path], folder: Path, name: str) -> None:
    """Put all weights that lie beside the graph into one file `name` of `folder`, and let the model say so."""
    if not found:
        return
    starts, at = {}, 0
    with (folder / name).open("wb") as out:
        for location, path in found.items():
            at += -at % 4096  # as the runtime maps it
            out.seek(at)
            starts[location] = at
            with path.open("rb") as source:
                shutil.copyfileobj(source, out, 2**22)
            at += path.stat().st_size
    for tensor in external_tensors(model):
        info = ExternalDataInfo(tensor)
        entries = {entry.key: entry.value for entry in tensor.external_data}
        entries["offset"] = str(int(info.offset or 0) + starts[info.location])
        entries["location"] = name
        entries.pop("checksum", None)
        del tensor.external_data[:]
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """A file of the output's name in a folder beside it; what is there at the end takes its place.

    Raises:
        ExportError: it cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
            yield Path(folder) / output.name
            data, old = Path(folder) / f"{output.name}.data", output.with_name(f"{output.name}.data")
            if (Path(folder) / output.name).exists():
                if data.exists():
                    os.replace(data, old)
                os.replace(Path(folder) / output.name, output)
                if not data.exists() and old.exists() and not _uses(output, old.name):
                    old.unlink()  # of the file that was replaced
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise ExportError(f"{output} cannot be written: {reason}") from error


def _uses(file: Path, name: str) -> bool:
    return any(ExternalDataInfo(tensor).location == name for tensor in external_tensors(read(file)))


def write(model: onnx.ModelProto, file: Path) -> None:
    """The graph; its weights beside are there already."""
    try:
        file.write_bytes(model.SerializeToString())
    except ValueError as error:  # protobuf's limit of 2 GiB
        raise ExportError(f"{file.name} is too large for one file: {error}") from error

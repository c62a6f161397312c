"""Repair: a decoder file in, a mended one out, and in words what was done and what could not be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx

from bento_kv.errors import BentoKVError, DecoderError
from bento_kv.repair.axes import restore_axes
from bento_kv.repair.files import carry_weights, check_paths, find_weights, read, staged, write
from bento_kv.repair.names import cast_presents, interface_of, normalize, pair_up
from bento_kv.repair.records import Change, Repair
from bento_kv.repair.reexport import reexport
from bento_kv.repair.trial import Subject
from bento_kv.repair.versions import lower_versions
from bento_kv.runtime.session import open_session


def repair(
    file: Path,
    output: Path,
    *,
    reference: str | None = None,
    names: bool = True,
    force: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Repair:
    """Mend a decoder's graph, or export it anew from its model.

    Without a reference: IR version and opset are lowered to what the installed runtime takes; weights that lie in the
    same folder under another name are relinked; presents are paired with the pasts that they begin with, and cast to
    their type; axes are made symbolic, and constants made sizes, as far as the graph survives it when it is run at
    batches 1 to 3, sequences 1 to 7 and pasts 0 to 7, cached against uncached; names are normalised. With one, all that
    is replaced by a new export behind the old interface, checked against the model.

    Args:
        file: what to mend; it stays as it is.
        output: where to; its weights go to `<output>.data` if those of the file lie beside it.
        reference: a Hugging Face model directory or a hub id.
        names: inputs and outputs are given the names that most loops expect.
        force: replace what stands at `output`.
        progress: told what is being done.

    Raises:
        DecoderError: the file cannot be read, is not a decoder, or nothing tells the heads of its cache.
        SourceError: the reference cannot be found or read.
        ExportError: the output may not or cannot be written, or the reference cannot be exported.
    """
    if not file.is_file():
        raise DecoderError(f"{file} does not exist; give an ONNX file")
    check_paths(file, output, force=force)
    result = Repair(file)
    with staged(output) as target:
        if reference is not None:
            result.mended = reexport(file, reference, target, progress=progress)
            result.exported = True
        else:
            _mend(file, target, result, names, progress)
        if target.exists():
            result.output = output
    return result


def _mend(file: Path, target: Path, result: Repair, names: bool, progress: Callable[[str], None]) -> None:
    """Write the mended graph to `target`; or nothing, where nothing was mended."""
    model = read(file)
    interface_of(model)
    found, relinked, missing = find_weights(model, file)
    if missing:  # a file that points to weights that are not there would be no better than the old one
        result.left += missing
        target.unlink(missing_ok=True)
        return
    result.mended += relinked
    progress("versions")
    model, mended, left = lower_versions(model)
    result.mended += mended
    result.left += left
    carry_weights(model, found, target.parent, f"{target.name}.data")
    if not left:
        model = _mend_graph(model, file, target, result, names, progress)
    if result.mended:
        write(model, target)
        if not result.left:
            open_session(target)  # what does not load is not mended
    else:
        target.unlink(missing_ok=True)


def _mend_graph(
    model: onnx.ModelProto, file: Path, target: Path, result: Repair, names: bool, progress: Callable[[str], None]
) -> onnx.ModelProto:
    """What needs a graph that the runtime loads."""
    write(model, target)
    if interface_of(model).packed:
        return model
    try:
        open_session(target)
    except BentoKVError as error:
        result.left.append(
            Change(
                "load-failed",
                file.name,
                f"{str(error).replace(str(target), file.name)}. A new export is needed: give the model as --reference",
            )
        )
        return model
    Subject.open(target, file).graph.empty_cache(1)  # raises where heads and their size are told nowhere
    progress("pairs")  # first: a cache that goes to another layer fails at any size
    model, paired, unpaired = pair_up(model, target)
    model, cast = cast_presents(model)
    progress("axes")
    restored = restore_axes(model, target, file)
    model = restored.model
    result.mended += [*paired, *cast, *restored.mended]
    result.left += [*unpaired, *restored.left]
    if names:
        model, changed = normalize(model)
        result.mended += changed
    return model

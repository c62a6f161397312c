"""Repair: a decoder file in, a mended one out, and in words what was done and what could not be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx_ir as ir

from bento_kv.doctor.export.unloadable import load_failed
from bento_kv.doctor.records import Finding
from bento_kv.errors import BentoKVError, DecoderError, GraphLimitError
from bento_kv.export.files import data_beside, staged
from bento_kv.repair.axes import Axes, name_axes
from bento_kv.repair.examine import examine, open_written
from bento_kv.repair.files import check_paths, read, write
from bento_kv.repair.interface import interface_of
from bento_kv.repair.names import normalize
from bento_kv.repair.pairs import cast_presents, pair_up
from bento_kv.repair.records import Change, Repair
from bento_kv.repair.reexport import reexport
from bento_kv.repair.versions import lower_versions
from bento_kv.repair.weights import carry_weights, find_weights, without_weights
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
    """Mend what a decoder's file says of its graph, or export the graph anew from its model.

    Without a reference: IR version and opset are lowered to what the installed runtime takes; weights that lie in the
    same folder under another name are relinked; presents are cast to the type of their pasts, and paired with the pasts
    that they begin with; sizes that inputs and outputs declare are made symbolic, as far as the graph takes others when
    the doctor runs it; and what is right then gets the usual names. What a graph computes is never changed: where sizes
    stand in it as constants, with a reference all of it is replaced by a new export behind the old interface, checked
    against the model.

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
            _Mending(read(file), target, result, progress).run(names=names)
        if target.exists():
            result.output = output
    return result


class _Mending:
    """One file on its way.

    Args:
        model: of the file; changed in place.
        target: where to write it; nothing is left there where nothing was mended.
        result: what is found and done goes into it.
        progress: told what is being done.
    """

    def __init__(self, model: ir.Model, target: Path, result: Repair, progress: Callable[[str], None]) -> None:
        self._model = model
        self._target = target
        self._result = result
        self._progress = progress

    def run(self, *, names: bool) -> None:
        """Write the mended graph; or nothing."""
        interface_of(self._model)
        relinked, missing = find_weights(self._model, self._result.source)
        self._note([], missing)
        if missing:  # a file that points to weights that are not there would be no better than the old one
            return
        self._progress("versions")
        mended, left = lower_versions(self._model)
        self._note([*relinked, *mended], left)
        carry_weights(self._model, data_beside(self._target))
        interface = interface_of(self._model)
        # What is carried besides a growing cache is not known by position, and keeps its names and sizes.
        if not left and not interface.packed and not interface.foreign and self._loads():
            self._mend_interface(names)
        if self._result.mended:
            write(self._model, self._target)
            if not self._result.left:
                open_session(self._target)  # what does not load is not mended
        else:
            self._target.unlink(missing_ok=True)

    def _mend_interface(self, names: bool) -> None:
        """What is told by running."""
        self._progress("pairs")  # first: a cache that goes to another layer fails at any size
        cast = cast_presents(self._model)
        axes = Axes(self._model)
        axes.free()
        write(self._model, self._target)
        paired, unpaired = pair_up(self._model, open_written(self._target, self._result.source))
        self._progress("axes")
        named, wrong = name_axes(axes, self._examine)
        self._note([*cast, *paired, *named], unpaired + [change for change in wrong if change.id not in _ids(unpaired)])
        if names and not self._result.left:
            self._note(normalize(self._model), [])

    def _examine(self) -> Sequence[Finding]:
        write(self._model, self._target)
        return examine(self._target, self._result.source)

    def _loads(self) -> bool:
        write(self._model, self._target)
        try:
            open_session(self._target)
        except GraphLimitError:
            raise
        except BentoKVError as error:
            file = self._result.source
            reason = str(error).replace(str(self._target), file.name)
            found = load_failed(file, reason, ir.to_proto(without_weights(self._model)[0]))
            advice = "A new export is needed: give the model as --reference"
            self._note([], [Change(found.id, found.where, f"{found.explain}. {advice}")])
            return False
        return True

    def _note(self, mended: Sequence[Change], left: Sequence[Change]) -> None:
        self._result.mended += mended
        self._result.left += left


def _ids(changes: Sequence[Change]) -> set[str]:
    return {change.id for change in changes}

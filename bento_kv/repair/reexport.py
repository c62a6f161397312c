"""The whole decoder again from its model, behind the interface that the old file had, so that a loop fits unchanged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bento_kv.errors import DecoderError, ExportError
from bento_kv.repair.adapt import adapt
from bento_kv.repair.files import read, write
from bento_kv.repair.interface import interface_of
from bento_kv.repair.records import Change
from bento_kv.runtime.interface import Interface
from bento_kv.runtime.memory import may_map
from bento_kv.source import ModelSource


def reexport(old: Path, reference: str, file: Path, *, progress: Callable[[str], None]) -> list[Change]:
    """Export `reference` to `file`.

    Args:
        old: the file whose interface is kept, where it can be read.
        reference: a Hugging Face model directory or a hub id.
        file: where to; weights beyond 1 GiB go to `<file>.data`.
        progress: told what is being done.

    Raises:
        SourceError, ExportError: the reference cannot be read, exported.
    """
    from bento_kv.export.growing import export_growing

    interface, changes = _interface(old)
    positions = mask = True
    if interface is not None:
        positions, mask = interface.positions is not None, interface.mask is not None
    with may_map(ModelSource.find(reference).weight_files()):
        export_growing(reference, file, positions=positions, mask=mask, progress=progress)
    if interface is not None:
        model = read(file)
        changes += adapt(model, interface)
        write(model, file)
    return changes


def _interface(old: Path) -> tuple[Interface | None, list[Change]]:
    """The old file's interface; None, and why, where it has none to keep."""
    what = "the common interface: past_key_values.N.key and .value in, present.N.key and .value out"
    try:
        interface = interface_of(read(old))
    except DecoderError as error:
        return None, [
            Change("load-failed", old.name, f"its interface cannot be told ({error}), so the export has {what}")
        ]
    if interface.packed:
        raise ExportError(f"{old} is a decoder of the in-place layout: export it anew with `bento-kv export`")
    if interface.foreign:
        raise ExportError(f"{old} has {interface.foreign}: a new export, whose cache grows, does not fit behind that")
    if interface.branch is not None:
        return None, [
            Change("names", interface.branch.name, f"one graph serves all steps now, without a switch; it has {what}")
        ]
    return interface, []

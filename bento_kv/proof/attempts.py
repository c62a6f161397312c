"""Exports that are proven at once, and the choice of a precision by proofs: the smallest that passes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bento_kv.contract.precision import AUTO, candidates
from bento_kv.contract.verification import Check, Verification
from bento_kv.contract.weight_options import QuantizationOptions
from bento_kv.errors import VerificationError
from bento_kv.export.exporter import check_target, export, staged
from bento_kv.proof.parity import TorchReference
from bento_kv.proof.proof import prove

Progress = Callable[[str], None]


def export_proven(
    source: str,
    directory: Path,
    *,
    precision: str,
    quantization: QuantizationOptions | None = None,
    progress: Progress = lambda _: None,
    **options: Any,
) -> Verification:
    """Export and prove. With `auto` the precisions are tried, the one of the fewest bits first, until a proof passes.

    Args:
        source: as `export` takes it.
        directory: where to; nothing stands there.
        precision: one that is exported, or `auto`.
        quantization: with `auto` each precision takes what means something to it.
        progress: told what is being done.
        options: more of `export`.

    Returns:
        The record of what stands at `directory`; with `auto` it passed.

    Raises:
        SourceError, ExportError: as `export`.
        VerificationError: with `auto`, no precision has a proof that passes; `directory` is gone.
    """
    asked = quantization or QuantizationOptions()
    asked.check(precision)
    tried: dict[str, tuple[str, ...]] = {}
    for each in candidates(precision):
        how = QuantizationOptions(**asked.of(each))
        export(source, directory, precision=each, quantization=how, tried=tried, progress=progress, **options)
        progress("proving it")
        record = prove(directory, lambda manifest: TorchReference(source, manifest), progress=progress)
        if record.passed or precision != AUTO:
            return record
        tried[each] = tuple(map(_fault, record.failed))
        progress(f"{each} does not pass: {', '.join(tried[each])}")
        shutil.rmtree(directory)
    reasons = "; ".join(f"{each}: {', '.join(faults)}" for each, faults in tried.items())
    raise VerificationError(f"{source}: no precision has a proof that passes. {reasons}")


def export_smallest(
    source: str, directory: Path, *, force: bool = False, progress: Progress = lambda _: None, **options: Any
) -> Verification:
    """Export with `auto` to where something may stand, which stays as it is until a proof has passed.

    Args:
        force: replace what stands at `directory`.
        source, directory, progress, options: as `export_proven` takes them.

    Raises:
        SourceError, ExportError, VerificationError: as `export_proven`.
    """
    check_target(directory, force=force)
    with staged(directory, force=force) as staging:
        made = staging / "made"
        record = export_proven(source, made, precision=AUTO, progress=progress, **options)
        for file in made.iterdir():
            file.rename(staging / file.name)
        made.rmdir()
    return record


def _fault(check: Check) -> str:
    measured = "" if check.measured is None else f" {check.measured:.3g}"
    return f"{check.id}{measured}" + ("" if check.limit is None else f" (limit {check.limit:g})")

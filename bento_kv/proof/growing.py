"""The graph of a growing cache, judged as anybody's is: the doctor's findings as checks of the proof."""

from __future__ import annotations

from pathlib import Path

from bento_kv.contract.checks import holds
from bento_kv.contract.verification import Check
from bento_kv.doctor.diagnose import check_export
from bento_kv.doctor.faults import EXPORT_FAULTS


def check_growing(directory: Path, threads: int | None) -> list[Check]:
    """A check for each fault that an export may have: how often it is there, and the first of it."""
    findings = check_export(directory, threads=threads).diagnosis.findings
    return [
        holds(fault.id, [f"{f.where}: {f.explain}" for f in findings if f.id == fault.id], fault.matter)
        for fault in EXPORT_FAULTS
    ]

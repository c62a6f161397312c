"""Repairs every graph that `make.py` made, and has the doctor judge what was written.

    python -m tests.wild.mend build/wild

Run in the project's own environment. Exits 1 if a right graph is changed, or if what was written is not right.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from bento_kv.doctor.diagnose import check_export
from bento_kv.repair.repair import repair
from tests.wild.catalogue import EXPORTS


def mend(file: Path) -> bool:
    """Print what is wrong with a graph before and after; whether that is as it should be."""
    before = [finding.id for finding in check_export(file).diagnosis.findings]
    with tempfile.TemporaryDirectory(prefix="bento_kv-wild-") as scratch:
        result = repair(file, Path(scratch) / file.name)
    changed = bool(result.mended or result.left)
    good = (result.output is not None) != bool(result.left) if before else not changed
    mended = ", ".join(sorted({change.id for change in result.mended})) or "nothing"
    left = ", ".join(sorted({change.id for change in result.left})) or "nothing"
    name = f"{file.parent.name}/{file.name}"
    print(
        f"{'ok ' if good else 'BAD'}  {name:<54} found {', '.join(before) or 'nothing'}; mended {mended}; left {left}"
    )
    return good


def main() -> None:
    folders = [Path(sys.argv[1]) / export.name for export in EXPORTS]
    good = [mend(file) for folder in folders for file in sorted(folder.glob("*.onnx"))]
    print(f"{len(good)} graphs repaired, {good.count(False)} wrongly")
    sys.exit(0 if good and all(good) else 1)


if __name__ == "__main__":
    main()

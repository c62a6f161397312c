"""Diagnoses what `make.py` made, then breaks some of it by hand and diagnoses that.

    python -m tests.wild.diagnose build/wild

Run in the project's own environment. Exits 1 if a right decoder is called wrong, a faulty one right, or a break is not named.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bento_kv.doctor.diagnose import diagnose
from bento_kv.doctor.records import Diagnosis
from bento_kv.runtime.growing import graph_files
from tests.wild.catalogue import EXPORTS

BROKEN = ("optimum-llama", "optimum-gpt2", "optimum-qwen2", "genai-llama", "genai-qwen2", "genai-gemma")


@dataclass(frozen=True)
class Result:
    """One diagnosis: what was expected, an id or nothing, and what was said."""

    name: str
    expected: str
    diagnosis: Diagnosis

    @property
    def right(self) -> bool:
        found = [finding.id for finding in self.diagnosis.export.findings]
        if not self.expected:
            return self.diagnosis.scenario == "C"
        if self.diagnosis.scenario != "D":
            return False
        return self.expected == "any" or found[:1] == [self.expected]

    def line(self) -> str:
        found = ", ".join(finding.id for finding in self.diagnosis.export.findings) or "nothing"
        mark = "ok " if self.right else "BAD"
        return f"{mark}  {self.name:<48} {self.diagnosis.scenario}  {found:<26} {self.diagnosis.target.layout}"


def past_declared_fixed(model: onnx.ModelProto) -> None:
    """As if traced without dynamic axes for the past."""
    for value in model.graph.input:
        if value.name.startswith("past"):
            value.type.tensor_type.shape.dim[2].dim_value = 5


def presents_exchanged(model: onnx.ModelProto) -> None:
    """Outputs of layers 0 and 1 under each other's names."""
    names = {"present.0.key": "present.1.key", "present.1.key": "present.0.key"}
    for node in model.graph.node:
        node.output[:] = [names.get(name, name) for name in node.output]
        node.input[:] = [names.get(name, name) for name in node.input]


def present_without_past(model: onnx.ModelProto) -> None:
    """Layer 0 returns its last position only."""
    for node in model.graph.node:
        node.output[:] = ["whole.key" if name == "present.0.key" else name for name in node.output]
        node.input[:] = ["whole.key" if name == "present.0.key" else name for name in node.input]
    bounds = {"last.start": [-1], "last.end": [np.iinfo(np.int64).max], "last.axis": [2]}
    model.graph.initializer.extend(numpy_helper.from_array(np.array(v), name) for name, v in bounds.items())
    model.graph.node.append(helper.make_node("Slice", ["whole.key", *bounds], ["present.0.key"]))


BREAKS: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "past axis declared fixed": (past_declared_fixed, "dynamic-axis-baked"),
    "presents of two layers exchanged": (presents_exchanged, "past-present-unpaired"),
    "present without the past": (present_without_past, "present-not-appended"),
}


def results(folder: Path) -> Iterator[Result]:
    """Of everything that was made, then of everything that is broken here."""
    for export in EXPORTS:
        if (folder / export.name).is_dir():
            uncached = export.name.endswith("-nocache")
            expected = "no-cache-io" if uncached else "any" if export.fault else ""
            yield Result(export.name, expected, diagnose(folder / export.name))
    for name in BROKEN:
        for what, (fault, expected) in BREAKS.items():
            if (folder / name).is_dir():
                yield Result(f"{name}, {what}", expected, _broken(folder / name, fault))


def _broken(directory: Path, fault: Callable[[onnx.ModelProto], None]) -> Diagnosis:
    with tempfile.TemporaryDirectory(prefix="bento_kv-wild-") as scratch:
        copy = Path(shutil.copytree(directory, Path(scratch) / "decoder"))
        (file,) = graph_files(copy)
        model = onnx.load(file, load_external_data=False)
        fault(model)
        file.write_bytes(model.SerializeToString())
        return diagnose(copy)


def main() -> None:
    found = []
    for result in results(Path(sys.argv[1])):
        print(result.line(), flush=True)
        found.append(result)
    wrong = sum(not result.right for result in found)
    print(f"{len(found)} decoders diagnosed, {wrong} wrongly")
    sys.exit(1 if wrong or not found else 0)


if __name__ == "__main__":
    main()

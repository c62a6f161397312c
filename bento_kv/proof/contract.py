"""The export without running it: does the graph keep what the manifest and the layout promise?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx

from bento_kv.contract.cache import cache_buffers
from bento_kv.contract.checks import at_most, holds
from bento_kv.contract.graph_io import STEP_INPUTS, TensorSpec, group_inputs, logits_output
from bento_kv.contract.manifest import Manifest
from bento_kv.contract.operators import LOCAL_WINDOW_SIZE
from bento_kv.contract.precision import CACHE_ELEMENTS
from bento_kv.contract.verification import Check
from bento_kv.doctor.export.io import IoFault, compare, compare_all, show
from bento_kv.errors import IntegrityError, ManifestError
from bento_kv.onnx_file import (
    declared_inputs,
    declared_outputs,
    highest_ir_version,
    highest_opset,
    nested_graphs,
    opsets,
)


def check_contract(directory: Path, manifest: Manifest) -> list[Check]:
    """All checks of the graphs against their manifest and layout; none runs a graph.

    Two graphs of an in-place decoder, one for prefill and one for decoding, have the same inputs and outputs.

    Raises:
        ManifestError: a graph is not an ONNX file.
    """
    names = manifest.graphs if manifest.layout == "in-place" else manifest.graphs[-1:]
    faces = [_Face.read(directory / name) for name in names]
    checks = [
        holds("file-hashes", _hash_faults(directory, manifest), "files whose sha256 is not the manifest's"),
        at_most(
            "ir-version",
            max(face.ir_version for face in faces),
            highest_ir_version(),
            "IR version; the limit is what the runtime takes",
        ),
        at_most(
            "opset",
            max(face.opset.get("ai.onnx", 0) for face in faces),
            highest_opset(),
            "ONNX opset; the limit is what the runtime takes",
        ),
        holds(
            "manifest-matches-graph",
            [fault for face in faces for fault in _manifest_faults(manifest, face)],
            "places where the manifest says other than the graph",
        ),
    ]
    if manifest.layout == "growing":
        return checks  # its inputs and outputs are whatever they are: the diagnosis looks at them
    faults = [fault for face in faces for fault in _layout_faults(manifest, face)]
    pairs = [fault for face in faces for fault in _pair_faults(manifest, face)]
    by_kind = {kind: [fault.text for fault in faults if fault.kind == kind] for kind in ("name", "dtype", "shape")}
    return [
        *checks,
        holds("io-names", by_kind["name"], "inputs and outputs missing or too many"),
        holds("past-present-paired", pairs, "past without a present like it"),
        holds("dtypes", by_kind["dtype"], "inputs and outputs of another type"),
        holds("symbolic-axes", by_kind["shape"], "axes baked, or not the cache's geometry"),
    ]


@dataclass(frozen=True, slots=True)
class _Face:
    """What a graph shows without being run."""

    ir_version: int
    opset: dict[str, int]
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]

    @classmethod
    def read(cls, file: Path) -> _Face:
        try:
            model = onnx.load(file, format="protobuf", load_external_data=False)
        except Exception as error:  # protobuf's errors share no base class with OSError
            raise ManifestError(f"{file} is not a readable ONNX file: {error}") from error
        return cls(
            ir_version=model.ir_version,
            opset=opsets(model),
            inputs={spec.name: spec for spec in declared_inputs(model)},
            outputs={spec.name: spec for spec in declared_outputs(model)},
        )


def longest_window(directory: Path, manifest: Manifest) -> int:
    """Tokens that the longest sliding window of the graphs' attention spans; 0 if none has one."""
    graphs = [
        onnx.load(directory / name, format="protobuf", load_external_data=False).graph for name in manifest.graphs
    ]
    nodes = [node for graph in graphs for each in nested_graphs(graph) for node in each.node]
    windows = [a.i for node in nodes for a in node.attribute if a.name == LOCAL_WINDOW_SIZE]
    return max(windows, default=0)


def _hash_faults(directory: Path, manifest: Manifest) -> list[str]:
    try:
        manifest.check_files(directory)
    except IntegrityError as error:
        return [str(error)]
    return []


def _manifest_faults(manifest: Manifest, face: _Face) -> list[str]:
    faults = []
    if face.ir_version != manifest.ir_version:
        faults.append(f"IR version {face.ir_version}, manifest {manifest.ir_version}")
    if any(face.opset.get(domain) != version for domain, version in manifest.opset.items()):
        faults.append(f"opsets {face.opset}, manifest {manifest.opset}")
    for kind, specs, own in (("input", manifest.inputs, face.inputs), ("output", manifest.outputs, face.outputs)):
        faults += [
            f"{kind} {s.name} is {show(own.get(s.name))}, manifest {show(s)}" for s in specs if own.get(s.name) != s
        ]
    return faults


def _layout_faults(manifest: Manifest, face: _Face) -> Iterator[IoFault]:
    """Where inputs and outputs are not the in-place layout's."""
    inputs = [*STEP_INPUTS, *group_inputs(manifest.group)]
    outputs = [logits_output(manifest.vocab_size)]
    for buffer in cache_buffers(manifest.layers):
        past, present = buffer.tensors(CACHE_ELEMENTS[manifest.kv_cache].dtype)
        inputs.append(past)
        outputs.append(present)
    yield from compare_all("input", face.inputs, {spec.name: spec for spec in inputs})
    yield from compare_all("output", face.outputs, {spec.name: spec for spec in outputs})


def _pair_faults(manifest: Manifest, face: _Face) -> list[str]:
    faults = []
    for buffer in cache_buffers(manifest.layers):
        past, present = face.inputs.get(buffer.before), face.outputs.get(buffer.after)
        if past is None or present is None or any(compare(present, past)):
            faults.append(f"{buffer.before} is {show(past)}, {buffer.after} is {show(present)}")
    return faults

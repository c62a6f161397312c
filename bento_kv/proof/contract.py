"""The export without running it: does the graph keep what the manifest and the layout promise?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

from bento_kv.contract.checks import at_most, holds
from bento_kv.contract.graph_io import (
    LOGITS,
    MAX_LENGTH,
    ROWS,
    SIDES,
    STEP_INPUTS,
    TensorSpec,
    cache_names,
    group_inputs,
    layer_of,
    logits_output,
    past_name,
    present_name,
)
from bento_kv.contract.manifest import Manifest
from bento_kv.contract.operators import LOCAL_WINDOW_SIZE
from bento_kv.contract.verification import Check
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
    for id, faults_of, explain in (
        ("io-names", _name_faults, "inputs and outputs missing or too many"),
        ("past-present-paired", _pair_faults, "past without a present like it"),
        ("dtypes", _dtype_faults, "inputs and outputs of another type"),
        ("symbolic-axes", _axis_faults, "axes baked, or not the cache's geometry"),
    ):
        checks.append(holds(id, [fault for face in faces for fault in faults_of(manifest, face)], explain))
    return checks


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
            f"{kind} {s.name} is {_show(own.get(s.name))}, manifest {_show(s)}" for s in specs if own.get(s.name) != s
        ]
    return faults


def _show(spec: TensorSpec | None) -> str:
    return f"{spec.dtype}{list(spec.shape)}" if spec else "missing"


def _step_inputs(manifest: Manifest) -> dict[str, TensorSpec]:
    return {spec.name: spec for spec in (*STEP_INPUTS, *group_inputs(manifest.group))}


def _name_faults(manifest: Manifest, face: _Face) -> list[str]:
    faults = []
    layers = len(manifest.layers)
    wanted_in = {*_step_inputs(manifest), *cache_names(past_name, layers)}
    wanted_out = {LOGITS, *cache_names(present_name, layers)}
    for kind, wanted, own in (("input", wanted_in, set(face.inputs)), ("output", wanted_out, set(face.outputs))):
        faults += [f"{kind} {name} is missing" for name in sorted(wanted - own)]
        faults += [f"{kind} {name} is not expected" for name in sorted(own - wanted)]
    return faults


def _pair_faults(manifest: Manifest, face: _Face) -> list[str]:
    faults = []
    layers = len(manifest.layers)
    for before, after in zip(cache_names(past_name, layers), cache_names(present_name, layers), strict=True):
        past, present = face.inputs.get(before), face.outputs.get(after)
        if past is None or present is None or (past.dtype, past.shape) != (present.dtype, present.shape):
            faults.append(f"{before} is {_show(past)}, {after} is {_show(present)}")
    return faults


def _dtype_faults(manifest: Manifest, face: _Face) -> list[str]:
    faults = []
    step = _step_inputs(manifest)
    for name, spec in {**face.inputs, **face.outputs}.items():
        cached = layer_of(name) is not None and manifest.kv_cache == "int8"
        expected = step[name].dtype if name in step else "int8" if cached else "float"
        if spec.dtype != expected:
            faults.append(f"{name} is {spec.dtype}, not {expected}")
    return faults


def _axis_faults(manifest: Manifest, face: _Face) -> list[str]:
    expected = {name: spec.shape for name, spec in _step_inputs(manifest).items()}
    expected[LOGITS] = logits_output(manifest.vocab_size).shape
    for layer, g in enumerate(manifest.layers):
        for side in SIDES:
            axes = (ROWS, g.kv_heads, MAX_LENGTH, g.head_dim)
            expected |= {past_name(layer, side): axes, present_name(layer, side): axes}
    return [
        f"{name} is {list(spec.shape)}, not {list(expected[name])}"
        for name, spec in {**face.inputs, **face.outputs}.items()
        if name in expected and spec.shape != expected[name]
    ]

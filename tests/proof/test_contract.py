"""Faults in a graph's contract: each is found by the check that is named after it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from bento_kv.contract.manifest import Manifest
from bento_kv.errors import ManifestError
from bento_kv.onnx_file import highest_ir_version, highest_opset
from bento_kv.proof.contract import check_contract
from tests.damage import change_graph, flip_weight_byte


def _failed(directory: Path) -> dict[str, str]:
    checks = check_contract(directory, Manifest.read(directory))
    return {check.id: check.explain for check in checks if not check.passed}


def test_a_right_decoder_has_no_fault(tiny_decoder: Path) -> None:
    assert _failed(tiny_decoder) == {}


def test_both_graphs_of_a_pair_are_looked_at(tiny_decoder: Path) -> None:
    model = onnx.load(tiny_decoder / "model.onnx", load_external_data=False)
    onnx.save(model, tiny_decoder / "prefill.onnx")
    graphs = {"graphs": ["prefill.onnx", "model.onnx"]}
    change_graph(tiny_decoder, lambda _: None, manifest=graphs)
    assert _failed(tiny_decoder) == {}
    del model.graph.input[3:4]
    onnx.save(model, tiny_decoder / "prefill.onnx")
    change_graph(tiny_decoder, lambda _: None, manifest=graphs)
    assert {"manifest-matches-graph", "io-names"} <= set(_failed(tiny_decoder))


def test_a_changed_weight(tiny_decoder: Path) -> None:
    flip_weight_byte(tiny_decoder)
    assert list(_failed(tiny_decoder)) == ["file-hashes"]


def _bake(axis: int, size: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        value = next(v for v in model.graph.input if v.name == "past_key_values.1.key")
        value.type.tensor_type.shape.dim[axis].dim_value = size

    return change


def _rename_present(model: onnx.ModelProto) -> None:
    value = next(v for v in model.graph.output if v.name == "present.0.value")
    for node in model.graph.node:
        node.output[:] = ["present.0.values" if name == value.name else name for name in node.output]
    value.name = "present.0.values"


def _retype_ids(model: onnx.ModelProto) -> None:
    value = next(v for v in model.graph.input if v.name == "seqlens_k")
    value.type.tensor_type.elem_type = onnx.TensorProto.INT64


def _newer_ir(model: onnx.ModelProto) -> None:
    model.ir_version = highest_ir_version() + 1


def _newer_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = highest_opset() + 1


@pytest.mark.parametrize(
    ("change", "check", "named"),
    [
        (_bake(2, 128), "symbolic-axes", r"past_key_values\.1\.key .*128"),
        (_bake(0, 1), "past-present-paired", r"past_key_values\.1\.key"),
        (_rename_present, "io-names", r"output present\.0\.value is missing"),
        (_rename_present, "past-present-paired", r"present\.0\.value is missing"),
        (_retype_ids, "dtypes", "seqlens_k is int64, not int32"),
        (_newer_ir, "ir-version", "IR version"),
        (_newer_opset, "opset", "opset"),
    ],
)
def test_a_fault_of_the_graph_is_named(
    change: Callable[[onnx.ModelProto], None], check: str, named: str, tiny_decoder: Path
) -> None:
    change_graph(tiny_decoder, change, manifest={})
    faults = _failed(tiny_decoder)
    assert check in faults
    assert "file-hashes" not in faults
    assert re.search(named, faults[check]), faults[check]


def test_a_graph_that_is_not_the_manifests(tiny_decoder: Path) -> None:
    path = tiny_decoder / "manifest.json"
    document = json.loads(path.read_text())
    document["inputs"][0]["dtype"] = "int32"
    path.write_text(json.dumps(document))
    assert list(_failed(tiny_decoder)) == ["manifest-matches-graph"]


def test_a_file_that_is_no_graph(tiny_decoder: Path) -> None:
    (tiny_decoder / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(ManifestError, match="not a readable ONNX file"):
        check_contract(tiny_decoder, Manifest.read(tiny_decoder))

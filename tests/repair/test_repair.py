"""What repair mends besides axes, what it refuses, and what it never touches."""

from __future__ import annotations

import copy
import hashlib
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from bento_kv.errors import DecoderError, ExportError
from bento_kv.repair import versions
from bento_kv.repair.repair import repair
from bento_kv.runtime.growing import GrowingGraph
from tests import layouts


@pytest.fixture
def healthy(common: onnx.ModelProto, tmp_path: Path) -> np.ndarray:
    (tmp_path / "healthy").mkdir()
    return _two_steps(layouts.save(common, tmp_path / "healthy" / "model.onnx"))


def test_an_ir_version_that_the_runtime_does_not_take(
    common: onnx.ModelProto, healthy: np.ndarray, tmp_path: Path
) -> None:
    model = copy.deepcopy(common)
    model.ir_version = versions.highest_ir_version() + 1
    file = layouts.save(model, tmp_path / "model.onnx")
    with pytest.raises(Exception, match="IR version"):
        ort.InferenceSession(str(file))
    result = repair(file, tmp_path / "mended.onnx")
    assert [change.id for change in result.mended] == ["ir-version-unsupported"]
    assert result.left == []
    np.testing.assert_array_equal(_two_steps(tmp_path / "mended.onnx"), healthy)


def test_an_opset_that_nobody_knows_yet(common: onnx.ModelProto, healthy: np.ndarray, tmp_path: Path) -> None:
    model = copy.deepcopy(common)
    model.opset_import[0].version = 77
    file = layouts.save(model, tmp_path / "model.onnx")
    with pytest.raises(Exception, match=r"(?i)opset"):
        ort.InferenceSession(str(file))
    result = repair(file, tmp_path / "mended.onnx")
    assert [change.id for change in result.mended] == ["opset-unsupported"]
    assert "not proven" in result.mended[0].text
    np.testing.assert_array_equal(_two_steps(tmp_path / "mended.onnx"), healthy)


def test_an_opset_that_nobody_knows_yet_with_an_operator_of_its_own(common: onnx.ModelProto, tmp_path: Path) -> None:
    model = copy.deepcopy(common)
    model.opset_import[0].version = 77
    next(node for node in model.graph.node if node.op_type == "Softmax").op_type = "SofterMax"
    result = repair(layouts.save(model, tmp_path / "model.onnx"), tmp_path / "mended.onnx")
    assert result.output is None
    assert [change.id for change in result.left] == ["opset-unsupported"]
    assert "SofterMax" in result.left[0].text


def test_an_opset_is_converted_down(
    common: onnx.ModelProto, healthy: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with an older runtime, which is not installed here."""
    monkeypatch.setattr(versions, "highest_opset", lambda: 19)
    file = layouts.save_with_external_data(common, tmp_path / "model.onnx")
    result = repair(file, tmp_path / "mended.onnx")
    assert [change.id for change in result.mended] == ["opset-unsupported"]
    assert onnx.load(tmp_path / "mended.onnx").opset_import[0].version == 19
    np.testing.assert_allclose(_two_steps(tmp_path / "mended.onnx"), healthy, rtol=0, atol=1e-4)


def test_an_opset_that_cannot_be_converted_says_which_operator(
    common: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "highest_opset", lambda: 22)
    model = copy.deepcopy(common)
    model.opset_import[0].version = 23
    model.graph.output.append(helper.make_tensor_value_info("extra", TensorProto.FLOAT, None))
    model.graph.initializer.append(helper.make_tensor("scale", TensorProto.FLOAT, [300], np.ones(300)))
    model.graph.node.append(helper.make_node("RMSNormalization", ["logits", "scale"], ["extra"]))
    result = repair(layouts.save(model, tmp_path / "model.onnx"), tmp_path / "mended.onnx")
    assert result.output is None
    assert "RMSNormalization came after opset 22" in result.left[0].text


def test_weights_under_another_name_are_relinked(common: onnx.ModelProto, healthy: np.ndarray, tmp_path: Path) -> None:
    file = layouts.save_with_external_data(common, tmp_path / "model.onnx", "weights.bin")
    (tmp_path / "weights.bin").rename(tmp_path / "model (1).bin")
    before = _hashes(tmp_path)
    (tmp_path / "out").mkdir()
    result = repair(file, tmp_path / "out" / "mended.onnx")
    assert [change.id for change in result.mended] == ["external-data-missing"]
    assert "model (1).bin" in result.mended[0].text
    assert _hashes(tmp_path) == before
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"mended.onnx", "mended.onnx.data"}
    np.testing.assert_array_equal(_two_steps(tmp_path / "out" / "mended.onnx"), healthy)


@pytest.mark.parametrize("state", ["gone", "cut off", "ambiguous"])
def test_missing_weights_are_named(state: str, common: onnx.ModelProto, tmp_path: Path) -> None:
    file = layouts.save_with_external_data(common, tmp_path / "model.onnx", "weights.bin")
    content = (tmp_path / "weights.bin").read_bytes()
    if state == "cut off":
        (tmp_path / "weights.bin").write_bytes(content[:-100])
    else:
        (tmp_path / "weights.bin").unlink()
    if state == "ambiguous":
        for name in ("a.bin", "b.bin"):
            (tmp_path / name).write_bytes(content)
    result = repair(file, tmp_path / "mended.onnx")
    assert result.output is None
    assert not (tmp_path / "mended.onnx").exists()
    (missing,) = result.left
    assert (missing.id, missing.where) == ("external-data-missing", "weights.bin")
    assert str(tmp_path / "weights.bin") in missing.text
    assert f"{len(content)} bytes" in missing.text
    assert ("a.bin, b.bin" in missing.text) == (state == "ambiguous")


def test_weights_outside_the_folder_are_not_read(common: onnx.ModelProto, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    file = layouts.save_with_external_data(common, tmp_path / "in" / "model.onnx", "weights.bin")
    (tmp_path / "in" / "weights.bin").rename(tmp_path / "weights.bin")
    model = onnx.load(file, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../weights.bin"
    result = repair(layouts.save(model, file), tmp_path / "mended.onnx")
    assert result.output is None
    assert [(change.id, change.where) for change in result.left] == [("external-data-missing", "../weights.bin")]
    assert "outside" in result.left[0].text


def test_weights_that_are_links_are_carried(common: onnx.ModelProto, healthy: np.ndarray, tmp_path: Path) -> None:
    """As model hubs keep their files."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "in").mkdir()
    model = copy.deepcopy(common)
    model.ir_version = versions.highest_ir_version() + 1
    file = layouts.save_with_external_data(model, tmp_path / "in" / "model.onnx", "weights.bin")
    (tmp_path / "in" / "weights.bin").rename(tmp_path / "blobs" / "0a1b")
    (tmp_path / "in" / "weights.bin").symlink_to(tmp_path / "blobs" / "0a1b")
    assert repair(file, tmp_path / "mended.onnx").left == []
    assert (tmp_path / "mended.onnx.data").stat().st_mode & 0o777 == (tmp_path / "mended.onnx").stat().st_mode & 0o777
    np.testing.assert_array_equal(_two_steps(tmp_path / "mended.onnx"), healthy)


def test_swapped_presents_are_paired_by_what_they_begin_with(
    common: onnx.ModelProto, healthy: np.ndarray, tmp_path: Path
) -> None:
    swapped = {
        "present.0.key": "present.1.value",
        "present.1.value": "present.0.value",
        "present.0.value": "present.0.key",
    }
    file = layouts.save(layouts.renamed(common, swapped), tmp_path / "model.onnx")
    assert np.abs(_two_steps(file) - healthy).max() > 0.1
    result = repair(file, tmp_path / "mended.onnx")
    assert [change.id for change in result.mended] == ["past-present-unpaired"]
    assert result.left == []
    np.testing.assert_allclose(_two_steps(tmp_path / "mended.onnx"), healthy, rtol=0, atol=1e-5)


def test_a_present_that_begins_with_no_past_is_named(common: onnx.ModelProto, tmp_path: Path) -> None:
    model = layouts.renamed(common, {"present.1.key": "whole"})
    model.graph.output[3].name = "present.1.key"
    model.graph.node.append(helper.make_node("Neg", ["whole"], ["present.1.key"]))
    result = repair(layouts.save(model, tmp_path / "model.onnx"), tmp_path / "mended.onnx")
    assert ("present-not-appended", "past_key_values.1.key") in [(c.id, c.where) for c in result.left]


def test_presents_of_another_type_are_cast(common: onnx.ModelProto, healthy: np.ndarray, tmp_path: Path) -> None:
    model = layouts.renamed(common, {"present.1.key": "narrow"})
    model.graph.output[3].name = "present.1.key"
    model.graph.output[3].type.tensor_type.elem_type = TensorProto.FLOAT16
    model.graph.node.append(helper.make_node("Cast", ["narrow"], ["present.1.key"], to=TensorProto.FLOAT16))
    result = repair(layouts.save(model, tmp_path / "model.onnx"), tmp_path / "mended.onnx")
    assert [change.id for change in result.mended] == ["dtype-mismatch"]
    np.testing.assert_allclose(_two_steps(tmp_path / "mended.onnx"), healthy, rtol=0, atol=0.1)


def test_what_is_not_right_keeps_its_names(common: onnx.ModelProto, tmp_path: Path) -> None:
    """A static cache, for one: what its inputs are for is not known before the graph has run by them."""
    model = layouts.with_names(
        common, past="cache_in.{layer}.{side}", input_ids="tokens", position_ids="cache_position"
    )
    model = layouts.as_traced_at(model, ["past"], batch=2, sequence=3, past=5)
    result = repair(layouts.save(model, tmp_path / "model.onnx"), tmp_path / "mended.onnx")
    assert result.left
    assert "names" not in [change.id for change in result.mended]


def test_names_are_normalised_or_kept(common: onnx.ModelProto, healthy: np.ndarray, tmp_path: Path) -> None:
    pattern = {"past": "cache_in.{layer}.{side}", "present": "cache_out.{layer}.{side}", "sides": ("k", "v")}
    odd = layouts.with_names(common, **pattern, input_ids="tokens", logits="scores")  # type: ignore[arg-type]
    file = layouts.save(odd, tmp_path / "model.onnx")
    assert repair(file, tmp_path / "kept.onnx", names=False).output is None
    result = repair(file, tmp_path / "mended.onnx")
    assert [change.id for change in result.mended] == ["names"]
    model = onnx.load(tmp_path / "mended.onnx")
    for mine, theirs in ((model.graph.input, common.graph.input), (model.graph.output, common.graph.output)):
        assert [value.name for value in mine] == [value.name for value in theirs]
    np.testing.assert_array_equal(_two_steps(tmp_path / "mended.onnx"), healthy)


def test_several_faults_at_once(common: onnx.ModelProto, healthy: np.ndarray, tmp_path: Path) -> None:
    model = layouts.as_fixed_axes(layouts.renamed(common, {"input_ids": "x"}), batch=1, past=3)
    model.ir_version = 99
    file = layouts.save_with_external_data(model, tmp_path / "model.onnx", "w.bin")
    (tmp_path / "w.bin").rename(tmp_path / "w2.bin")
    result = repair(file, tmp_path / "mended.onnx")
    assert {change.id for change in result.mended} == {
        "external-data-missing",
        "ir-version-unsupported",
        "dynamic-axis-baked",
        "names",
    }
    assert result.left == []
    np.testing.assert_allclose(_two_steps(tmp_path / "mended.onnx"), healthy, rtol=0, atol=1e-5)


@pytest.mark.parametrize("way", ["same", "symlink", "hard link", "weights", "weights beside", "linked folder"])
def test_the_input_is_never_overwritten(way: str, common: onnx.ModelProto, tmp_path: Path) -> None:
    model = copy.deepcopy(common)
    model.ir_version = 99
    file = layouts.save_with_external_data(
        model, tmp_path / "model.onnx", "out.onnx.data" if way == "weights beside" else None
    )
    output = {
        "same": file,
        "weights": tmp_path / "model.onnx.data",
        "linked folder": tmp_path / "link" / "model.onnx",
        "weights beside": tmp_path / "out.onnx",
    }.get(way, tmp_path / "other.onnx")
    if way == "symlink":
        output.symlink_to(file)
    if way == "hard link":
        os.link(file, output)
    if way == "linked folder":
        (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    before = _hashes(tmp_path)
    with pytest.raises(ExportError, match="the input is kept"):
        repair(file, output, force=True)
    assert _hashes(tmp_path) == before


def test_an_output_that_exists_is_kept_without_force(common: onnx.ModelProto, tmp_path: Path) -> None:
    file = layouts.save(layouts.as_fixed_axes(common, batch=2), tmp_path / "model.onnx")
    output = tmp_path / "mended.onnx"
    output.write_text("mine")
    with pytest.raises(ExportError, match="--force"):
        repair(file, output)
    assert output.read_text() == "mine"
    assert repair(file, output, force=True).output == output
    assert onnx.load(output).graph.node


def test_a_fault_on_the_way_leaves_nothing(
    common: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = layouts.save(layouts.as_fixed_axes(common, batch=2), tmp_path / "model.onnx")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bento_kv.repair.repair.write", full)
    with pytest.raises(ExportError, match="disk is full"):
        repair(file, tmp_path / "mended.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "no graph"), (b"<html>not found</html>", "not an ONNX file|no graph")]
)
def test_files_that_are_no_graph(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(DecoderError, match=message):
        repair(tmp_path / "model.onnx", tmp_path / "mended.onnx")


def test_a_cache_whose_heads_are_told_nowhere(common: onnx.ModelProto, tmp_path: Path) -> None:
    model = layouts.as_fixed_axes(common, batch=1)
    for value in [*layouts.cache_inputs(model), *layouts.cache_outputs(model)]:
        value.type.tensor_type.shape.dim[3].dim_param = "head_size"
    file = layouts.save(model, tmp_path / "model.onnx")
    with pytest.raises(DecoderError, match=r"config\.json"):
        repair(file, tmp_path / "mended.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    (tmp_path / "config.json").write_text('{"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64}')
    assert repair(file, tmp_path / "mended.onnx").left == []


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DecoderError, match="does not exist"):
        repair(tmp_path / "model.onnx", tmp_path / "mended.onnx")


def _two_steps(file: Path) -> np.ndarray:
    """Logits of three tokens from an empty past, and of two more."""
    graph = GrowingGraph.open(file)
    ids = np.random.default_rng(0).integers(0, 256, (2, 5))
    first = graph.run(ids[:, :3], graph.empty_cache(2))
    return np.concatenate([first.logits, graph.run(ids[:, 3:], first.present).logits], axis=1)


def _hashes(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir() if path.is_file()}

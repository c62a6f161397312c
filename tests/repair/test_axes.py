"""Declared sizes: made symbolic where the graph in truth takes others; where it does not, they stay and are named."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from bento_kv.repair.repair import repair
from tests import layouts

Made = Callable[[onnx.ModelProto], onnx.ModelProto]
MENDED: dict[str, Made] = {
    "batch": lambda model: layouts.as_fixed_axes(model, batch=2),
    "past": lambda model: layouts.as_fixed_axes(model, past=4),
    "all": lambda model: layouts.as_fixed_axes(model, batch=1, sequence=3, past=4),
    "a decoding step": lambda model: layouts.as_fixed_axes(model, batch=1, sequence=1, past=6),
    "half precision": lambda model: layouts.as_fixed_axes(layouts.as_fp16(model), batch=2, past=4),
}


@pytest.mark.parametrize("name", MENDED)
def test_a_declared_size_becomes_an_axis(name: str, common: onnx.ModelProto, tmp_path: Path) -> None:
    file = layouts.save(MENDED[name](common), tmp_path / "model.onnx")
    before = file.read_bytes()
    with pytest.raises(Exception, match=r"(?i)dimension|shape|broadcast|index"):
        _logits(file, batch=3, sequence=2, past=9)
    result = repair(file, tmp_path / "mended.onnx")
    assert result.output == tmp_path / "mended.onnx"
    assert result.left == []
    assert {change.id for change in result.mended} == {"dynamic-axis-baked"}
    assert file.read_bytes() == before
    onnx.checker.check_model(result.output, full_check=True)
    healthy = layouts.save(common, tmp_path / "healthy.onnx")
    for batch, sequence, past in ((1, 1, 0), (1, 1, 9), (3, 2, 9), (2, 11, 0), (4, 5, 1)):
        sizes = {"batch": batch, "sequence": sequence, "past": past}
        expected = _logits(healthy, **sizes)
        limit = (0.03 if name == "half precision" else 1e-5) * np.abs(expected).max()
        np.testing.assert_allclose(_logits(result.output, **sizes), expected, rtol=0, atol=limit)


@pytest.mark.parametrize("layout", [layouts.as_stacked, layouts.as_transposed_keys, layouts.as_merged])
def test_other_layouts_too(layout: Made, common: onnx.ModelProto, tmp_path: Path) -> None:
    baked = layouts.as_fixed_axes(layout(common), batch=2, past=4)
    result = repair(layouts.save(baked, tmp_path / "model.onnx"), tmp_path / "mended.onnx")
    assert result.output is not None
    assert result.left == []
    declared = [layouts.dims(value) for value in onnx.load(result.output).graph.input]
    assert declared == [layouts.dims(value) for value in layout(common).graph.input]


def test_an_axis_that_nothing_brings_back_stays_and_is_named(common: onnx.ModelProto, tmp_path: Path) -> None:
    """A table that was computed for the traced tokens: what it would be for others stands nowhere."""
    model = layouts.as_fixed_axes(common, batch=2, sequence=3)
    table = np.random.default_rng(0).standard_normal((1, 3, 300)).astype(np.float32)
    _add_to_logits(model, table)
    result = repair(layouts.save(model, tmp_path / "model.onnx"), tmp_path / "mended.onnx")
    assert [change.where for change in result.left] == ["sequence = 3"]
    assert "new export is needed" in result.left[0].text
    assert "--reference" in result.left[0].text
    assert result.output is not None
    shapes = {value.name: layouts.dims(value) for value in onnx.load(result.output).graph.input}
    assert shapes["input_ids"] == ["batch", 3]
    assert shapes["past_key_values.0.key"] == ["batch", 2, "past", 16]


def test_where_nothing_can_be_mended_nothing_is_written(common: onnx.ModelProto, tmp_path: Path) -> None:
    model = layouts.as_fixed_axes(common, sequence=3)
    _add_to_logits(model, np.ones((1, 3, 300), np.float32) * np.arange(3, dtype=np.float32)[:, None])
    result = repair(layouts.save(model, tmp_path / "model.onnx"), tmp_path / "mended.onnx")
    assert result.output is None
    assert result.mended == []
    assert [change.where for change in result.left] == ["sequence = 3"]
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_rows_that_read_each_others_mask_are_not_called_repaired(common: onnx.ModelProto, tmp_path: Path) -> None:
    """The graph runs at every batch, and takes the first row's mask for all: only padded rows show it."""
    model = layouts.as_fixed_axes(common, batch=1)
    layouts.rename_uses(model.graph, {"attention_mask": "first_mask"})
    zero = numpy_helper.from_array(np.array([0]), "zero")
    model.graph.initializer.append(zero)
    model.graph.node.insert(0, helper.make_node("Gather", ["attention_mask", "zero"], ["one_mask"], axis=0))
    model.graph.node.insert(1, helper.make_node("Shape", ["attention_mask"], ["mask_shape"]))
    model.graph.node.insert(2, helper.make_node("Expand", ["one_mask", "mask_shape"], ["first_mask"]))
    result = repair(layouts.save(model, tmp_path / "model.onnx"), tmp_path / "mended.onnx")
    assert [change.where for change in result.left] == ["batch = 1"]
    assert "padded" in result.left[0].text
    assert result.output is None


def test_a_graph_that_takes_any_past_but_an_empty_one(common: onnx.ModelProto, tmp_path: Path) -> None:
    """As where an exporter split the past from the tokens at an index that an empty past does not have."""
    model = layouts.as_fixed_axes(common, batch=2)
    zero = numpy_helper.from_array(np.array(0), "zero")
    model.graph.initializer.append(zero)
    layouts.rename_uses(model.graph, {"past_key_values.0.key": "checked"})
    first = helper.make_node("Gather", ["past_key_values.0.key", "zero"], ["first"], axis=2)
    nothing = [
        helper.make_node("Sub", ["first", "first"], ["nothing"]),
        helper.make_node("Unsqueeze", ["nothing", "two"], ["spread"]),
        helper.make_node("Add", ["past_key_values.0.key", "spread"], ["checked"]),
    ]
    model.graph.initializer.append(numpy_helper.from_array(np.array([2]), "two"))
    for index, node in enumerate([first, *nothing]):
        model.graph.node.insert(index, node)
    result = repair(layouts.save(model, tmp_path / "model.onnx"), tmp_path / "mended.onnx")
    assert [change.id for change in result.left] == ["zero-length-past-rejected"]
    assert [change.id for change in result.mended] == ["dynamic-axis-baked"]
    assert layouts.dims(onnx.load(tmp_path / "mended.onnx").graph.input[0]) == ["batch", "sequence"]


def test_numbers_that_are_wrong_at_any_size_are_not_blamed_on_an_axis(common: onnx.ModelProto, tmp_path: Path) -> None:
    """The past is taken and not looked at: its values are zeros inside, and come out so."""
    model = layouts.as_fixed_axes(common)
    model.graph.initializer.append(numpy_helper.from_array(np.array([0.0], np.float32), "nothing"))
    layouts.rename_uses(model.graph, {"past_key_values.1.value": "lost"})
    model.graph.node.insert(0, helper.make_node("Mul", ["past_key_values.1.value", "nothing"], ["lost"]))
    result = repair(layouts.save(model, tmp_path / "model.onnx"), tmp_path / "mended.onnx")
    assert [change.id for change in result.left] == ["present-not-appended"]
    assert "--reference" in result.left[0].text
    assert result.output is None


@pytest.mark.parametrize("part", ["decoder_with_past_model.onnx", "decoder_model.onnx"])
def test_a_graph_of_a_pair(part: str, common: onnx.ModelProto, tmp_path: Path) -> None:
    first, later = (layouts.as_fixed_axes(model, batch=1) for model in layouts.as_two_files(common))
    layouts.save(first, tmp_path / "decoder_model.onnx")
    layouts.save(layouts.as_fixed_axes(later, sequence=1), tmp_path / "decoder_with_past_model.onnx")
    (tmp_path / "out").mkdir()
    result = repair(tmp_path / part, tmp_path / "out" / part)
    assert (result.left, [change.id for change in result.mended]) == ([], ["dynamic-axis-baked"])
    assert layouts.dims(onnx.load(tmp_path / "out" / part).graph.input[0]) == ["batch", "sequence"]


def test_sizes_within_are_named_and_need_a_new_export(common: onnx.ModelProto, tmp_path: Path) -> None:
    """Constants that a trace made of sizes: which they were stands nowhere, so they are not guessed."""
    model = layouts.as_traced_at(common, ["sequence", "past"], batch=2, sequence=3, past=5)
    result = repair(layouts.save(model, tmp_path / "model.onnx"), tmp_path / "mended.onnx")
    assert result.output is None
    assert {change.id for change in result.left} == {"dynamic-axis-baked"}
    assert all("give the model as --reference" in change.text for change in result.left)


def test_where_rows_cannot_stand_side_by_side_the_other_axes_are_named(common: onnx.ModelProto, tmp_path: Path) -> None:
    model = layouts.as_fixed_axes(layouts.as_traced_at(common, ["batch"], batch=1, sequence=3, past=5), batch=1, past=5)
    result = repair(layouts.save(model, tmp_path / "model.onnx"), tmp_path / "mended.onnx")
    assert [change.where for change in result.left] == ["batch = 1"]
    assert result.output is not None
    assert layouts.dims(onnx.load(result.output).graph.input[-1])[::2] == [1, "past"]


def test_sizes_of_outputs_count_too(common: onnx.ModelProto, tmp_path: Path) -> None:
    model = copy.deepcopy(common)
    for value in layouts.cache_outputs(model):
        value.type.tensor_type.shape.dim[2].dim_value = 8
    result = repair(layouts.save(model, tmp_path / "model.onnx"), tmp_path / "mended.onnx")
    assert (result.left, [change.id for change in result.mended]) == ([], ["dynamic-axis-baked"])
    mended = onnx.load(tmp_path / "mended.onnx")
    assert layouts.dims(layouts.cache_outputs(mended)[0]) == layouts.dims(layouts.cache_outputs(common)[0])


def test_a_healthy_graph_is_left_alone(common: onnx.ModelProto, tmp_path: Path) -> None:
    result = repair(layouts.save(common, tmp_path / "model.onnx"), tmp_path / "mended.onnx")
    assert (result.output, result.mended, result.left) == (None, [], [])


def _add_to_logits(model: onnx.ModelProto, table: np.ndarray) -> None:
    inner = layouts.renamed(model, {"logits": "plain"})
    model.CopyFrom(inner)
    model.graph.initializer.append(numpy_helper.from_array(table, "table"))
    model.graph.node.append(helper.make_node("Add", ["plain", "table"], ["logits"]))
    model.graph.output[0].name = "logits"


def _logits(file: Path, **sizes: int) -> np.ndarray:
    """Of one step on numbers made up, the same for each file."""
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(7)
    batch, sequence, past = sizes["batch"], sizes["sequence"], sizes["past"]
    feeds: dict[str, np.ndarray] = {}
    for value in session.get_inputs():
        if "past" in value.name:
            dtype = np.float16 if "float16" in value.type else np.float32
            feeds[value.name] = rng.standard_normal((batch, 2, past, 16)).astype(dtype)
    feeds["input_ids"] = rng.integers(0, 256, (batch, sequence))
    feeds["attention_mask"] = np.ones((batch, past + sequence), np.int64)
    feeds["position_ids"] = np.arange(past, past + sequence)[None].repeat(batch, 0)
    return session.run(["logits"], feeds)[0].astype(np.float32)

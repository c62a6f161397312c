"""Graphs that do not end, or that explode: the run ends, with exit 2 and a sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from bento_kv.cli import main
from tests.doctor.ends import Change, behind_logits, saved


def _number(model: onnx.ModelProto, name: str, *values: int) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
    return name


def _scalar(model: onnx.ModelProto, name: str, value: int) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
    return name


def endless(model: onnx.ModelProto) -> None:
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go.in"], ["go.out"]),
            helper.make_node("Identity", ["carried.in"], ["carried.out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go.in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried.in", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go.out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried.out", TensorProto.FLOAT, None),
        ],
    )
    trips = _scalar(model, "trips", 2**62)
    behind_logits(model, helper.make_node("Loop", [trips, "", "inner"], ["logits"], body=body))


def expanded(model: onnx.ModelProto) -> None:
    shape, axes = _number(model, "huge", 25_000_000_000, 1, 1), _number(model, "huge.axes", 0)
    behind_logits(
        model,
        helper.make_node("Expand", ["inner", shape], ["huge.wide"]),
        helper.make_node("ReduceMean", ["huge.wide", axes], ["logits"], keepdims=1),
    )


def constant_of_shape(model: onnx.ModelProto) -> None:
    shape = _number(model, "huge", 25_000_000_000)
    behind_logits(
        model,
        helper.make_node("ConstantOfShape", [shape], ["huge.zeros"]),
        helper.make_node("ReduceSum", ["huge.zeros"], ["huge.sum"], keepdims=0),
        helper.make_node("Add", ["inner", "huge.sum"], ["logits"]),
    )


def ranged(model: onnx.ModelProto) -> None:
    ends = [_scalar(model, f"range.{name}", value) for name, value in (("from", 0), ("to", 12_500_000_000), ("by", 1))]
    behind_logits(
        model,
        helper.make_node("Range", ends, ["range.numbers"]),
        helper.make_node("ReduceMin", ["range.numbers"], ["range.least"], keepdims=0),
        helper.make_node("Cast", ["range.least"], ["range.zero"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["inner", "range.zero"], ["logits"]),
    )


def tiled(model: onnx.ModelProto) -> None:
    """Sizes that grow with every node, each from the one before."""
    nodes, last = [], "inner"
    repeats = _number(model, "repeats", 20_000, 1, 1)
    for turn in range(4):
        nodes.append(helper.make_node("Tile", [last, repeats], [f"tiled.{turn}"]))
        last = f"tiled.{turn}"
    axes = _number(model, "tiled.axes", 0)
    behind_logits(model, *nodes, helper.make_node("ReduceMean", [last, axes], ["logits"], keepdims=1))


@pytest.mark.parametrize("command", ["doctor", "repair", "trace"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (endless, "more than 1 s"),
        (expanded, "Expand"),
        (constant_of_shape, "ConstantOfShape"),
        (ranged, "Range"),
        (tiled, "Tile"),
    ],
    ids=["Loop", "Expand", "ConstantOfShape", "Range", "Tile"],
)
def test_a_graph_that_does_not_end_or_explodes_is_exit_2(
    growing_file: Path, tmp_path: Path, change: Change, words: str, command: str
) -> None:
    file = saved(onnx.load(growing_file), change, tmp_path)
    options = {"doctor": [], "repair": ["-o", str(tmp_path / "repaired.onnx")], "trace": ["--prompt-ids", "5,6"]}
    limit = ["--time-limit", "1"] if change is endless else []
    result = CliRunner().invoke(main, [command, str(file), *limit, *options[command]])
    assert result.exit_code == 2, result.output
    assert words in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx"]

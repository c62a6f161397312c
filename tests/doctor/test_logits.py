"""Logits that depend on nothing are a finding of their own: every comparison of such numbers would pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from bento_kv.doctor.diagnose import check_export
from bento_kv.repair.repair import repair
from tests.doctor.ends import Change, behind_logits, saved


def masked_by(factor: np.ndarray, offset: np.ndarray) -> Change:
    """Logits times one thing plus another."""

    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(factor.astype(np.float32), "factor"))
        model.graph.initializer.append(numpy_helper.from_array(offset.astype(np.float32), "offset"))
        behind_logits(
            model,
            helper.make_node("Mul", ["inner", "factor"], ["scaled"]),
            helper.make_node("Add", ["scaled", "offset"], ["logits"]),
        )

    return change


def averaged(model: onnx.ModelProto) -> None:
    """One number a token, as wide as the vocabulary."""
    axes = numpy_helper.from_array(np.array([-1]), "mean.axes")
    model.graph.initializer.append(axes)
    behind_logits(
        model,
        helper.make_node("ReduceMean", ["inner", "mean.axes"], ["mean.logits"]),
        helper.make_node("Shape", ["inner"], ["mean.shape"]),
        helper.make_node("Expand", ["mean.logits", "mean.shape"], ["logits"]),
    )


@pytest.mark.parametrize(
    ("change", "id", "words"),
    [
        (masked_by(np.zeros(1), np.zeros(1)), "logits-constant", "all zeros"),
        (masked_by(np.zeros(1), np.ones(1)), "logits-constant", "the same numbers"),
        (masked_by(np.zeros(1), np.arange(300)), "logits-constant", "the same numbers"),
        (averaged, "logits-constant", "one number"),
        (masked_by(np.full(1, np.nan), np.zeros(1)), "nan", "not numbers"),
        (masked_by(np.full(1, 1e-6), np.zeros(1)), "", ""),
    ],
    ids=["zeros", "ones", "a bias", "a mean", "nan", "small ones"],
)
def test_logits_that_depend_on_nothing(growing_file: Path, tmp_path: Path, change: Change, id: str, words: str) -> None:
    found = check_export(saved(onnx.load(growing_file), change, tmp_path)).diagnosis.findings
    assert [finding.id for finding in found] == [id] * bool(id)
    assert all(words in finding.explain for finding in found)


def test_ids_are_below_the_table_that_they_are_looked_up_in(growing_file: Path, tmp_path: Path) -> None:
    """Heads are padded to a round number; a token beyond the table would end every run."""

    def padded(model: onnx.ModelProto) -> None:
        extra = numpy_helper.from_array(np.array([0, 0, 0, 0, 0, 700]), "extra")
        model.graph.initializer.append(extra)
        behind_logits(model, helper.make_node("Pad", ["inner", "extra"], ["logits"]))
        value = next(value for value in model.graph.output if value.name == "logits")
        value.type.tensor_type.shape.dim[2].dim_value = 1000

    file = saved(onnx.load(growing_file), padded, tmp_path)
    judgement = check_export(file)
    assert (judgement.diagnosis.verdict, judgement.vocab_size) == ("right", 300)
    assert not repair(file, tmp_path / "repaired.onnx").left

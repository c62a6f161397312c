"""Files that the runtime refuses: the reason is named, and what is advised leads out of it."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from bento_kv.doctor.diagnose import diagnose
from bento_kv.doctor.export.loading import open_decoder_file
from bento_kv.errors import DecoderError
from bento_kv.repair.repair import repair
from tests.doctor.ends import Change, behind_logits, saved


@pytest.fixture(scope="module")
def healthy(growing_file: Path) -> onnx.ModelProto:
    return onnx.load(growing_file)


def within(dtype: int) -> Change:
    def change(model: onnx.ModelProto) -> None:
        behind_logits(
            model,
            helper.make_node("Cast", ["inner"], ["brief"], to=dtype),
            helper.make_node("Exp", ["brief"], ["computed"]),
            helper.make_node("Cast", ["computed"], ["logits"], to=TensorProto.FLOAT),
        )

    return change


def cache_in(dtype: int) -> Change:
    """A file that loads: the cache is cast at the door."""

    def change(model: onnx.ModelProto) -> None:
        value = next(value for value in model.graph.input if value.name.startswith("past"))
        value.type.tensor_type.elem_type = dtype
        for node in model.graph.node:
            node.input[:] = ["wide" if name == value.name else name for name in node.input]
        model.graph.node.insert(0, helper.make_node("Cast", [value.name], ["wide"], to=TensorProto.FLOAT))

    return change


def custom_operator(model: onnx.ModelProto) -> None:
    behind_logits(model, helper.make_node("Sorcery", ["inner"], ["logits"], domain="com.elsewhere"))
    model.opset_import.append(helper.make_opsetid("com.elsewhere", 1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (within(TensorProto.BFLOAT16), "bfloat16"),
        (within(TensorProto.FLOAT8E4M3FN), "float8e4m3fn"),
        (cache_in(TensorProto.BFLOAT16), "bfloat16"),
        (custom_operator, "Sorcery"),
    ],
    ids=["bfloat16 within", "float8 within", "bfloat16 at the door", "custom operator"],
)
def test_the_type_or_the_operator_is_named(
    healthy: onnx.ModelProto, tmp_path: Path, change: Change, words: str
) -> None:
    file = saved(healthy, change, tmp_path)
    diagnosis = diagnose(file)
    assert (diagnosis.scenario, diagnosis.export.findings[0].id) == ("D", "load-failed")
    finding = diagnosis.export.findings[0]
    assert words in finding.explain
    assert "--reference" in finding.fix
    assert words == "Sorcery" or diagnosis.target.precision == words
    left = repair(file, tmp_path / "repaired.onnx").left
    assert any(words in each.text for each in left)
    assert any("--reference" in each.text for each in left)


def test_half_precision_within_is_computed(healthy: onnx.ModelProto, tmp_path: Path) -> None:
    opened = open_decoder_file(saved(healthy, within(TensorProto.FLOAT16), tmp_path))
    assert not opened.findings


def test_tokens_in_the_place_of_logits_are_named(healthy: onnx.ModelProto, tmp_path: Path) -> None:
    def arg_max(model: onnx.ModelProto) -> None:
        behind_logits(model, helper.make_node("ArgMax", ["inner"], ["logits"], axis=-1))
        value = next(value for value in model.graph.output if value.name == "logits")
        value.type.tensor_type.elem_type = TensorProto.INT64

    with pytest.raises(DecoderError, match="logits is int64"):
        diagnose(saved(healthy, arg_max, tmp_path))

"""The layouts that tests are made of: each is a valid graph that computes what the common one does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from bento_kv.runtime.growing import GrowingGraph
from tests import decoders, layouts

Made = Callable[[onnx.ModelProto], onnx.ModelProto]
CASES: dict[str, Made] = {
    "stacked": layouts.as_stacked,
    "transposed keys": layouts.as_transposed_keys,
    "time major": layouts.as_time_major,
    "merged": layouts.as_merged,
    "int32": layouts.as_int32_ids,
    "fp16": layouts.as_fp16,
    "fixed": lambda model: layouts.as_fixed_axes(model, batch=2, past=0, sequence=3),
    "names": lambda model: layouts.with_names(
        model, past="cache_in.{layer}.{side}", present="cache_out.{layer}.{side}", sides=("k", "v"), input_ids="tokens"
    ),
    "old names": lambda model: layouts.with_names(model, past="past_{side}_{layer}", present="present_{side}_{layer}"),
    "traced": lambda model: layouts.as_traced_at(model, ["batch"], batch=2, sequence=3, past=4),
}


@pytest.fixture(scope="session")
def common() -> onnx.ModelProto:
    return onnx.load(decoders.growing())


@pytest.mark.parametrize("name", CASES)
def test_a_layout_computes_what_the_common_one_does(name: str, common: onnx.ModelProto, tmp_path: Path) -> None:
    before = common.SerializeToString(deterministic=True)
    model = CASES[name](common)
    assert common.SerializeToString(deterministic=True) == before
    assert model.SerializeToString(deterministic=True) != before
    onnx.checker.check_model(model, full_check=True)
    expected = _two_steps([layouts.save(common, tmp_path / "common.onnx")], second=name != "fixed")
    logits = _two_steps([layouts.save(model, tmp_path / "model.onnx")], second=name != "fixed")
    np.testing.assert_allclose(logits, expected, rtol=0, atol=0.2 if name == "fp16" else 1e-5)


def test_two_files(common: onnx.ModelProto, tmp_path: Path) -> None:
    names = ("decoder_model.onnx", "decoder_with_past_model.onnx")
    files = [layouts.save(m, tmp_path / n) for m, n in zip(layouts.as_two_files(common), names, strict=True)]
    assert not layouts.cache_inputs(onnx.load(files[0]))
    for file in files:
        onnx.checker.check_model(file, full_check=True)
    expected = _two_steps([layouts.save(common, tmp_path / "common.onnx")])
    np.testing.assert_allclose(_two_steps(files), expected, rtol=0, atol=1e-5)


def test_uncached(common: onnx.ModelProto, tmp_path: Path) -> None:
    model = layouts.as_uncached(common)
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert [v.name for v in session.get_inputs()] == ["input_ids", "attention_mask", "position_ids"]
    assert [v.name for v in session.get_outputs()] == ["logits"]
    ids = _ids()
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(5)[None].repeat(2, 0)}
    expected = _two_steps([layouts.save(common, tmp_path / "common.onnx")])
    np.testing.assert_allclose(session.run(None, feeds)[0], expected, rtol=0, atol=1e-5)


def test_external_data(common: onnx.ModelProto, tmp_path: Path) -> None:
    file = layouts.save_with_external_data(common, tmp_path / "model.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data"}
    onnx.checker.check_model(file, full_check=True)
    expected = _two_steps([layouts.save(common, tmp_path / "common.onnx")])
    np.testing.assert_array_equal(_two_steps([file]), expected)


@pytest.mark.parametrize("axis", ["batch", "sequence", "past"])
def test_a_traced_size_holds_for_that_size_only(axis: str, common: onnx.ModelProto) -> None:
    sizes = {"batch": 2, "sequence": 3, "past": 4}
    axes = [axis] if axis == "batch" else ["sequence", "past"]  # masks depend on their sum
    model = layouts.as_traced_at(common, axes, **sizes)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    session.run(None, layouts.feeds(common, sizes))
    with pytest.raises(Exception, match=r"(?i)shape|dimension|broadcast"):
        session.run(None, layouts.feeds(common, {**sizes, axis: sizes[axis] + 3}))


def _ids() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 5))


def _two_steps(files: list[Path], *, second: bool = True) -> np.ndarray:
    """Logits of three tokens from an empty past, and of two more."""
    graph = GrowingGraph([ort.InferenceSession(str(f), providers=["CPUExecutionProvider"]) for f in files])
    ids = _ids()
    first = graph.run(ids[:, :3], graph.empty_cache(2))
    if not second:
        return first.logits
    return np.concatenate([first.logits, graph.run(ids[:, 3:], first.present).logits], axis=1)

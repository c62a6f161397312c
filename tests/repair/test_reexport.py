"""A new export behind the old interface: a loop that fed the broken file feeds the new one unchanged."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto
from transformers import AutoModelForCausalLM

from bento_kv.errors import SourceError
from bento_kv.repair.adapt import adapt
from bento_kv.repair.interface import interface_of
from bento_kv.repair.repair import repair
from bento_kv.runtime.growing import GrowingGraph
from tests import layouts

pytestmark = pytest.mark.usefixtures("traced_once")

Made = Callable[[onnx.ModelProto], onnx.ModelProto]
INTERFACES: dict[str, Made] = {
    "common": lambda model: model,
    "other names": lambda model: layouts.with_names(
        model, past="cache_in.{layer}.{side}", present="cache_out.{layer}.{side}", sides=("k", "v"), input_ids="tokens"
    ),
    "stacked": layouts.as_stacked,
    "transposed keys": layouts.as_transposed_keys,
    "time major": layouts.as_time_major,
    "int32": layouts.as_int32_ids,
    "half precision": layouts.as_fp16,
}


@pytest.mark.parametrize("name", INTERFACES)
def test_the_interface_is_put_around_the_export(
    name: str, common: onnx.ModelProto, source: Path, tmp_path: Path
) -> None:
    layout = INTERFACES[name](common)
    model = ir.from_proto(copy.deepcopy(common))
    adapt(model, interface_of(ir.from_proto(layouts.as_fixed_axes(layout, batch=1, past=4))))
    file = tmp_path / "new.onnx"
    ir.save(model, file)
    assert _declared(file) == _declared(layouts.save(layout, tmp_path / "layout.onnx"))
    _assert_equals_torch(file, source, 0.05 if name == "half precision" else 1e-5)


@pytest.fixture
def exporting(common: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    """The export of the session instead of one more."""

    def export(_: str, file: Path, *, positions: bool, mask: bool, progress: Callable[[str], None]) -> None:
        assert positions
        assert mask
        layouts.save(common, file)

    monkeypatch.setattr("bento_kv.export.growing.export_growing", export)


def test_a_broken_file_is_exported_anew(common: onnx.ModelProto, source: Path, tmp_path: Path) -> None:
    layout = layouts.as_stacked(common)
    file = layouts.save(layouts.as_fixed_axes(layout, batch=1, past=4), tmp_path / "model.onnx")
    before = file.read_bytes()
    result = repair(file, tmp_path / "new.onnx", reference=str(source))
    assert (result.exported, result.left) == (True, [])
    assert file.read_bytes() == before
    assert _declared(tmp_path / "new.onnx") == _declared(layouts.save(layout, tmp_path / "layout.onnx"))
    _assert_equals_torch(tmp_path / "new.onnx", source, 1e-5)


def _declared(file: Path) -> set[tuple[str, str, tuple[int | str, ...]]]:
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return {(v.name, v.type, tuple(v.shape)) for v in [*session.get_inputs(), *session.get_outputs()]}


@pytest.mark.parametrize("layout", ["uncached", "merged"])
def test_an_interface_without_a_cache_of_its_own_gets_the_common_one(
    layout: str, common: onnx.ModelProto, source: Path, exporting: None, tmp_path: Path
) -> None:
    made = layouts.as_uncached(common) if layout == "uncached" else layouts.as_merged(common)
    result = repair(layouts.save(made, tmp_path / "model.onnx"), tmp_path / "new.onnx", reference=str(source))
    assert any("past_key_values.N.key" in change.text for change in result.mended)
    assert [value.name for value in onnx.load(tmp_path / "new.onnx").graph.input] == [
        value.name for value in common.graph.input
    ]
    _assert_equals_torch(tmp_path / "new.onnx", source, 1e-5)


def test_a_file_cut_off_is_exported_anew(
    common: onnx.ModelProto, source: Path, exporting: None, tmp_path: Path
) -> None:
    (tmp_path / "model.onnx").write_bytes(common.SerializeToString()[:5000])
    result = repair(tmp_path / "model.onnx", tmp_path / "new.onnx", reference=str(source))
    assert result.exported
    _assert_equals_torch(tmp_path / "new.onnx", source, 1e-5)


def test_a_cache_in_bfloat16_is_one_of_floats_then(
    common: onnx.ModelProto, source: Path, exporting: None, tmp_path: Path
) -> None:
    """The runtime loads no such graph on its CPU provider, and nobody can feed it: the advice has to lead somewhere."""
    model = copy.deepcopy(common)
    for value in [*layouts.cache_inputs(model), *layouts.cache_outputs(model)]:
        value.type.tensor_type.elem_type = TensorProto.BFLOAT16
    file = layouts.save(model, tmp_path / "model.onnx")
    result = repair(file, tmp_path / "mended.onnx")
    assert (result.output, [change.id for change in result.left]) == (None, ["load-failed"])
    assert "--reference" in result.left[0].text
    result = repair(file, tmp_path / "new.onnx", reference=str(source))
    assert any("bfloat16" in change.text and "past_key_values.0.key" in change.where for change in result.mended)
    _assert_equals_torch(tmp_path / "new.onnx", source, 1e-5)


def test_a_reference_that_is_not_there(common: onnx.ModelProto, tmp_path: Path) -> None:
    file = layouts.save(common, tmp_path / "model.onnx")
    with pytest.raises(SourceError):
        repair(file, tmp_path / "new.onnx", reference="./no/such/model")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def _assert_equals_torch(file: Path, source: Path, limit: float) -> None:
    graph = GrowingGraph.open(file)
    ids = np.random.default_rng(0).integers(0, 256, (2, 9))
    cache, logits = graph.empty_cache(2), []
    for chunk in (slice(0, 4), slice(4, 5), slice(5, 9)):
        output = graph.run(ids[:, chunk], cache)
        cache = output.present
        logits.append(output.logits)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(ids)).logits.numpy()
    assert np.abs(np.concatenate(logits, axis=1) - expected).max() < limit * np.abs(expected).max()

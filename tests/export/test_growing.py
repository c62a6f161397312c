"""The growing interface, architecture by architecture, against the unpatched torch model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from bento_kv.errors import ExportError, UnsupportedArchitecture
from bento_kv.export import growing
from bento_kv.export.growing import export_growing
from bento_kv.export.growing_check import IoNames
from tests import decoders
from tests.effort import slow_but
from tests.zoo import CONFIGS, GROWING_ONLY, save_model

WITHOUT_POSITIONS = ("bloom", "mpt", "falcon-alibi")
# One of each kind; more are exported by the tests of the diagnosis.
ARCHITECTURES = ("gemma3_text", "gpt2", "llama", "mixtral", *sorted(GROWING_ONLY), "falcon-alibi")
# Windows, learned positions, the plain form, positions by slopes in a cache of its own code.
FAST = ("gemma3_text", "gpt2", "llama", "bloom")
_LIMIT = 1e-5  # of the largest logit


@pytest.fixture(scope="session")
def llama() -> Path:
    """Of one layer: what does not depend on their number is traced sooner."""
    return decoders.source(num_hidden_layers=1)


_ALIBI = {"alibi": True, "new_decoder_architecture": False, "multi_query": False, "num_kv_heads": 4}


def _source(name: str) -> Path:
    architecture = name.removesuffix("-alibi")
    return decoders.source(architecture, **(_ALIBI if name != architecture else {}))


@pytest.mark.parametrize("architecture", slow_but(FAST, ARCHITECTURES))
def test_every_step_equals_the_torch_model(architecture: str) -> None:
    source = _source(architecture)
    file = decoders.growing(source)
    onnx.checker.check_model(file, full_check=True)
    session = _open(file)
    expected = ["input_ids", "attention_mask", *(["position_ids"] if architecture not in WITHOUT_POSITIONS else [])]
    assert [value.name for value in session.get_inputs() if "past" not in value.name] == expected
    _assert_equals_torch(session, source)


def test_the_interface(growing_file: Path) -> None:
    session = _open(growing_file)
    shapes = {value.name: value.shape for value in [*session.get_inputs(), *session.get_outputs()]}
    assert list(shapes) == [
        *("input_ids", "attention_mask", "position_ids"),
        *(f"past_key_values.{layer}.{side}" for layer in range(2) for side in ("key", "value")),
        "logits",
        *(f"present.{layer}.{side}" for layer in range(2) for side in ("key", "value")),
    ]
    assert shapes["input_ids"] == shapes["position_ids"] == ["batch", "sequence"]
    assert shapes["attention_mask"] == ["batch", "past + sequence"]
    assert shapes["past_key_values.1.value"] == ["batch", 2, "past", 16]
    assert shapes["present.0.key"] == ["batch", 2, "past + sequence", 16]
    assert shapes["logits"] == ["batch", "sequence", 300]


@pytest.mark.parametrize(
    ("positions", "mask"), [pytest.param(True, False, marks=pytest.mark.slow), (False, True), (False, False)]
)
def test_an_input_left_out_is_derived(positions: bool, mask: bool, llama: Path) -> None:
    session = _open(decoders.growing(llama, positions=positions, mask=mask))
    names = {value.name for value in session.get_inputs()}
    assert ("position_ids" in names, "attention_mask" in names) == (positions, mask)
    _assert_equals_torch(session, llama)


def test_names_of_ones_own_an_opset_and_weights_beside(llama: Path, tmp_path: Path) -> None:
    names = IoNames(
        input_ids="tokens",
        attention_mask="seen",
        position_ids="where",
        logits="scores",
        past=("k0", "v0"),
        present=("k0_out", "v0_out"),
    )
    file = tmp_path / "decoder.onnx"
    export_growing(str(llama), file, names=names, opset=18, external_data=True)
    model = onnx.load(file, load_external_data=False)
    assert model.opset_import[0].version == 18
    assert {path.name for path in tmp_path.iterdir()} == {"decoder.onnx", "decoder.onnx.data"}
    assert {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"} == {
        "decoder.onnx.data"
    }
    session = _open(file)
    assert [value.name for value in session.get_inputs()] == ["tokens", "seen", "where", *names.past]
    _assert_equals_torch(session, llama, names)


def test_state_that_is_not_keys_and_values_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONFIGS, "mamba", {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2})
    source = save_model(tmp_path / "source", "mamba")
    with pytest.raises(UnsupportedArchitecture, match="mamba: it keeps other state than keys and values"):
        export_growing(str(source), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == [source]


def test_what_comes_out_wrong_is_not_kept(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "widen_bfloat16", _double_a_weight)
    with pytest.raises(ExportError, match=r"llama: the exported graph's logits differ"):
        export_growing(str(llama), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def _double_a_weight(graph: Any) -> None:
    name, value = next((n, v) for n, v in graph.initializers.items() if "o_proj" in n or v.const_value.size == 64 * 64)
    value.const_value = growing.ir.tensor(2 * value.const_value.numpy(), name=name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 17}, "opset 17 is older than 18"),
        ({"names": IoNames(past=("a", "b", "c"))}, "3 names were given for the cache of 1 layers"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str, llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        export_growing(str(llama), tmp_path / "model.onnx", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_exists_is_kept(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("mine")
    with pytest.raises(ExportError, match="exists already"):
        export_growing(str(llama), tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_text() == "mine"


def _open(file: Path) -> ort.InferenceSession:
    return ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def _assert_equals_torch(session: ort.InferenceSession, source: Path, names: IoNames | None = None) -> None:
    """Batches of 1, 2, 3; sequences of 1, 2, 3, 4, 7; pasts from 0; rows padded on the left where there is a mask."""
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    rng = np.random.default_rng(0)
    for rows in (1, 2, 3):
        for chunks in ([1, 1, 1, 1], [7, 1, 4, 1], [2, 3, 7], [3, 1, 2]):
            ids = rng.integers(0, 256, (rows, sum(chunks)))
            starts = [min(2 * row, chunks[0] - 1) for row in range(rows)]
            if names is None and "attention_mask" not in {value.name for value in session.get_inputs()}:
                starts = [0] * rows
            logits = _steps(session, ids, starts, chunks, names or IoNames())
            for row, start in enumerate(starts):
                with torch.no_grad():
                    reference = model(input_ids=torch.from_numpy(ids[row : row + 1, start:])).logits[0].numpy()
                error = np.abs(logits[row, start:] - reference).max() / np.abs(reference).max()
                assert error < _LIMIT, (rows, chunks, row)


def _steps(
    session: ort.InferenceSession, ids: NDArray[np.int64], starts: Sequence[int], chunks: Sequence[int], names: IoNames
) -> NDArray[np.float32]:
    """Logits of all chunks; the cache is passed on by the order of inputs and outputs."""
    values = {value.name: value for value in session.get_inputs()}
    others = (names.input_ids, names.attention_mask, names.position_ids)
    caches = [value for name, value in values.items() if name not in others]
    past = [np.zeros((ids.shape[0], value.shape[1], 0, value.shape[3]), np.float32) for value in caches]
    mask = (np.arange(ids.shape[1]) >= np.array(starts)[:, None]).astype(np.int64)
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    logits, at = [], 0
    for tokens in chunks:
        whole = (ids[:, at : at + tokens], mask[:, : at + tokens], positions[:, at : at + tokens])
        feeds = {name: array for name, array in zip(others, whole, strict=True) if name in values}
        feeds.update({value.name: array for value, array in zip(caches, past, strict=True)})
        first, *past = session.run(None, feeds)
        at += tokens
        assert [array.shape[2] for array in past] == [at] * len(past)
        logits.append(first)
    return np.concatenate(logits, axis=1)

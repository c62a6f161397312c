"""What an export leaves: a directory that is whole, and a manifest that says what is in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest
from transformers import AutoTokenizer

from bento_kv.contract.files import MODEL_FILE
from bento_kv.contract.manifest import Manifest
from bento_kv.errors import IntegrityError
from bento_kv.export.exporter import export
from bento_kv.onnx_file import nested_graphs
from tests import decoders
from tests.damage import flip_weight_byte
from tests.zoo import save_model


def test_the_directory_has_what_the_contract_names(tiny_decoder: Path) -> None:
    assert {path.name for path in tiny_decoder.iterdir()} == {
        "model.onnx",
        "model.onnx.data",
        "manifest.json",
        "verification.json",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        ".origin",
    }
    manifest = json.loads((tiny_decoder / "manifest.json").read_text())
    assert manifest["schema"] == "bento_kv.manifest/1"
    assert manifest["layout"] == "in-place"
    assert manifest["token_ids"] == {"bos": 256, "eos": [257], "pad": 258}
    assert manifest["layers"] == [{"kind": "kv", "kv_heads": 2, "head_dim": 16}] * 2
    past = next(spec for spec in manifest["inputs"] if spec["name"] == "past_key_values.1.value")
    assert past == {"name": "past_key_values.1.value", "dtype": "float", "shape": ["rows", 2, "max_length", 16]}
    record = json.loads((tiny_decoder / "verification.json").read_text())
    assert record["schema"] == "bento_kv.verification/1"


def test_the_weights_are_external_and_the_graph_computes_no_positions(tiny_decoder: Path) -> None:
    model = onnx.load(tiny_decoder / MODEL_FILE, load_external_data=False)
    operators = [node.op_type for graph in nested_graphs(model.graph) for node in graph.node]
    assert operators.count("GroupQueryAttention") == 2 * 2  # of each layer, two forms
    assert not {"Cos", "Sin"} & set(operators)
    assert (tiny_decoder / MODEL_FILE).stat().st_size < 200_000
    assert (tiny_decoder / "model.onnx.data").stat().st_size > 300_000


def test_tokenizer_and_template_are_the_models(tiny_source: Path, tiny_decoder: Path) -> None:
    ours, theirs = (AutoTokenizer.from_pretrained(path) for path in (tiny_decoder, tiny_source))
    text = "Grüße, 世界 🙂\n\n  x"
    assert ours.encode(text) == theirs.encode(text)
    assert ours.chat_template == theirs.chat_template


@pytest.mark.usefixtures("traced_once")
def test_force_replaces_and_max_length_is_kept(tiny_source: Path, tmp_path: Path) -> None:
    shutil.copytree(decoders.exported(), tmp_path / "decoder")
    first = Manifest.read(tmp_path / "decoder")
    second = export(str(tiny_source), tmp_path / "decoder", max_length=64, force=True)
    assert (first.max_length, second.max_length) == (128, 64)
    assert Manifest.read(tmp_path / "decoder") == second
    assert list(tmp_path.iterdir()) == [tmp_path / "decoder"]


def test_a_changed_weight_is_noticed(tiny_decoder: Path) -> None:
    manifest = Manifest.read(tiny_decoder)
    manifest.check_files(tiny_decoder)
    flip_weight_byte(tiny_decoder)
    with pytest.raises(IntegrityError, match=r"model\.onnx\.data was changed"):
        manifest.check_files(tiny_decoder)


def test_weights_in_another_precision_are_exported_as_fp32(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    source = save_model(tmp_path / "source", "llama")
    AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(source)
    manifest = export(str(source), tmp_path / "decoder")
    assert {spec.dtype for spec in manifest.outputs} == {"float"}

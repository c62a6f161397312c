"""What cannot be exported, and what the user is told."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from bento_kv.errors import ExportError, SourceError, UnsupportedArchitecture
from bento_kv.export.exporter import export
from tests.zoo import byte_tokenizer, save_model

_SMALL = {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def _save(directory: Path, architecture: str, **config: object) -> Path:
    torch.manual_seed(0)
    made = AutoConfig.for_model(architecture, **config)
    AutoModelForCausalLM.from_config(made).save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory


@pytest.mark.parametrize(
    ("architecture", "config", "why"),
    [
        ("gptj", {"vocab_size": 300, "n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8}, "attention"),
        ("bloom", {"vocab_size": 300, "hidden_size": 64, "n_layer": 2, "n_head": 4}, "attention|position_ids"),
        (
            "deepseek_v3",
            {
                **_SMALL,
                "intermediate_size": 64,
                "num_key_value_heads": 4,
                "q_lora_rank": 32,
                "kv_lora_rank": 16,
                "qk_rope_head_dim": 8,
                "qk_nope_head_dim": 8,
                "v_head_dim": 8,
                "first_k_dense_replace": 2,
                "n_routed_experts": 4,
                "n_group": 1,
                "topk_group": 1,
                "num_experts_per_tok": 2,
            },
            "latent attention",
        ),
        ("mamba", {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2}, "position_ids|attention"),
    ],
)
def test_architectures_that_cannot_be_exported_say_why(
    architecture: str, config: dict[str, object], why: str, tmp_path: Path
) -> None:
    source = _save(tmp_path / "source", architecture, **config)
    with pytest.raises(UnsupportedArchitecture, match=why) as caught:
        export(str(source), tmp_path / "decoder")
    assert architecture in str(caught.value)
    assert list(tmp_path.iterdir()) == [source]


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    config = AutoConfig.for_model("vit", hidden_size=64, num_hidden_layers=1, num_attention_heads=4)
    AutoModel.from_config(config).save_pretrained(tmp_path / "source")
    with pytest.raises(UnsupportedArchitecture, match="not a causal language model"):
        export(str(tmp_path / "source"), tmp_path / "decoder")


@pytest.mark.parametrize("source", ["no-such-model", "./no/such/dir", "/no/such/dir", "a/b/c"])
def test_a_source_that_does_not_exist(source: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="not a model directory"):
        export(source, tmp_path / "decoder")


def test_a_hub_id_that_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="hub"):
        export("nobody/nothing", tmp_path / "decoder")


def test_a_directory_without_weights(tiny_source: Path, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "config.json").write_bytes((tiny_source / "config.json").read_bytes())
    with pytest.raises(SourceError, match="no weights"):
        export(str(tmp_path / "source"), tmp_path / "decoder")


def test_weights_that_are_cut_off(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "llama")
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(SourceError, match=r"weights \(model\.safetensors\) cannot be read"):
        export(str(source), tmp_path / "decoder")


def test_weights_that_lack_a_layer(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "llama")
    config = source / "config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    with pytest.raises(SourceError, match=r"lack 9 tensors.*layers\.2"):
        export(str(source), tmp_path / "decoder")


def test_a_directory_without_a_tokenizer(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "llama")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).unlink()
    with pytest.raises(ExportError, match=r"no tokenizer.*tokenizer\.json"):
        export(str(source), tmp_path / "decoder")


@pytest.mark.usefixtures("traced_once")
@pytest.mark.parametrize("full", ["before", "while writing"])
def test_a_full_disk_leaves_nothing_behind(full: str, tiny_source: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs more rights")
    try:
        others = []
        if full == "before":
            others = ["other"]
            (disk / "other").write_bytes(bytes(256 * 1024))
        with pytest.raises(ExportError, match=r"disk .* is full"):
            export(str(tiny_source), disk / "decoder")
        assert [path.name for path in disk.iterdir()] == others
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_target_that_exists_is_kept(tiny_source: Path, tmp_path: Path) -> None:
    (tmp_path / "decoder").mkdir()
    (tmp_path / "decoder" / "thesis.txt").write_text("years of work")
    with pytest.raises(ExportError, match="--force"):
        export(str(tiny_source), tmp_path / "decoder")
    with pytest.raises(ExportError, match="not a decoder directory"):
        export(str(tiny_source), tmp_path / "decoder", force=True)
    assert (tmp_path / "decoder" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 129}, "between 32 and the model's 128"),
        ({"max_length": 1}, "between 32 and"),
        ({"opset": 22}, "opset 22 is not between 23"),
        ({"opset": 99}, "opset 99"),
        ({"precision": "int3"}, "int3"),
    ],
)
def test_options_out_of_range(options: dict[str, object], message: str, tiny_source: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        export(str(tiny_source), tmp_path / "decoder", **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []

"""Rotation of what few channels carry: it changes nothing in floats, and lets 8 bits stand for models that have outliers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from bento_kv.contract.manifest import Manifest
from bento_kv.contract.rotation import Rotated, rotate, rotation
from bento_kv.contract.verification import Verification
from bento_kv.contract.weight_options import QuantizationOptions
from bento_kv.errors import ExportError
from bento_kv.export.exporter import export
from bento_kv.proof.parity import TorchReference
from bento_kv.proof.proof import prove
from tests.zoo import save_model

OUTLIERS = {3: 60.0, 41: -40.0}  # channels of the residual stream, and how much larger than others they are


@pytest.mark.parametrize("size", [16, 48, 64, 576])
def test_a_rotation_is_orthogonal_and_even(size: int) -> None:
    matrix = rotation(size)
    assert np.abs(matrix @ matrix.T - np.eye(size)).max() < 1e-12
    assert np.abs(matrix).max() < 4.5 / np.sqrt(size)  # a random one of few dimensions is not as even as Hadamard's
    assert (rotation(size) == matrix).all()


def test_rotated_weights_compute_the_same() -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((5, 64)), rng.standard_normal((48, 64)).astype(np.float32)
    gain = rng.standard_normal(64).astype(np.float32)
    how = Rotated(parameter="w", gain="g", gain_offset=1.0, inputs=64, outputs=16)
    expected = rotate((x * (1 + gain) @ weight.T).astype(np.float32), 16)
    got = rotate(x.astype(np.float32), 64) @ how.apply(weight, gain).T
    assert np.abs(got - expected).max() < 1e-4


def with_outliers(source: Path) -> Path:
    """Give a llama a few channels that are huge everywhere, and norms that make up for it."""
    model = AutoModelForCausalLM.from_pretrained(source)
    with torch.no_grad():
        for channel, factor in OUTLIERS.items():
            model.model.embed_tokens.weight[:, channel] *= factor
            for layer in model.model.layers:
                layer.self_attn.o_proj.weight[channel] *= factor
                layer.mlp.down_proj.weight[channel] *= factor
                for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                    norm.weight[channel] /= factor
            model.model.norm.weight[channel] /= factor
    model.save_pretrained(source)
    return source


def proven(source: Path, directory: Path, **how: bool) -> Verification:
    export(str(source), directory, precision="int8", quantization=QuantizationOptions(**how) if how else None)
    return prove(directory, lambda manifest: TorchReference(str(source), manifest))


def divergence(record: Verification) -> float:
    return max(float(c.measured or np.inf) for c in record.export.checks if c.id.startswith("quality-kl"))


def test_outliers_that_8_bits_do_not_stand_are_harmless_when_rotated(tmp_path: Path) -> None:
    source = with_outliers(save_model(tmp_path / "llama", "llama", tie_word_embeddings=True))
    plain = proven(source, tmp_path / "plain", rotate=False)
    turned = proven(source, tmp_path / "turned")
    assert turned.passed
    assert divergence(turned) < divergence(plain) / 2
    manifest = Manifest.read(tmp_path / "turned")
    layers = len(manifest.layers)
    # Of each layer: q, k, v, o, gate, up, down; and the embedding and the head.
    assert manifest.passes["rotate_residual"] == 7 * layers + 2
    assert manifest.passes["spread_inputs"] == 2 * layers  # what attention and the gate make
    assert Manifest.read(tmp_path / "plain").rotations == {}


@pytest.mark.parametrize(("architecture", "products"), [("qwen3", 16), ("phi3", 10), ("granite", 16)])
def test_an_architecture_that_can_be_rotated(architecture: str, products: int, tmp_path: Path) -> None:
    source = save_model(tmp_path / architecture, architecture)
    assert proven(source, tmp_path / "decoder").passed
    assert Manifest.read(tmp_path / "decoder").passes["rotate_residual"] == products


@pytest.mark.parametrize("architecture", ["gemma2", "olmo2", "gpt2", "mixtral"])
def test_an_architecture_that_cannot_is_left_as_it_is_and_says_so(architecture: str, tmp_path: Path) -> None:
    source = save_model(tmp_path / architecture, architecture)
    assert proven(source, tmp_path / "decoder").passed
    assert Manifest.read(tmp_path / "decoder").passes["rotate_residual"] == 0


def test_a_rotation_that_the_manifest_tells_wrongly_has_no_proof(tmp_path: Path) -> None:
    source = save_model(tmp_path / "llama", "llama")
    export(str(source), tmp_path / "decoder", precision="int8")
    manifest = Manifest.read(tmp_path / "decoder")
    name = next(name for name, how in manifest.rotations.items() if how.gain is not None)
    wrong = manifest.rotations[name].model_copy(update={"gain": None})
    manifest.model_copy(update={"rotations": {**manifest.rotations, name: wrong}}).write(tmp_path / "decoder")
    record = prove(tmp_path / "decoder", lambda manifest: TorchReference(str(source), manifest))
    assert not record.passed


def test_floats_have_nothing_to_rotate(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="rotate does nothing with precision fp32; int4 and int8 can take it"):
        export("demo", tmp_path / "decoder", quantization=QuantizationOptions(rotate=True))

"""Rounding with a look at the inputs: less error in products, from the inputs that the model really has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer

from bento_kv.contract.manifest import Manifest
from bento_kv.contract.quantization import BlockWeights, side_by_side
from bento_kv.contract.rotation import Rotated
from bento_kv.contract.weight_options import QuantizationOptions
from bento_kv.errors import ExportError
from bento_kv.export.calibrate import calibrated_blocks
from bento_kv.export.calibration_text import SEQUENCES, calibration_sequences
from bento_kv.export.compensate import quantize_compensating
from bento_kv.export.exporter import export
from bento_kv.export.quantize import quantize_blocks
from tests import decoders

Floats = NDArray[np.float32]


def _problem(rows: int = 64, columns: int = 200, seed: int = 0) -> tuple[Floats, NDArray[np.float64]]:
    """A weight, and inputs that are correlated and of very different sizes, as behind a trained layer."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((columns // 4, columns)) * rng.exponential(size=columns) ** 2
    x = rng.standard_normal((3000, columns // 4)) @ mixing + 0.1 * rng.standard_normal((3000, columns))
    return rng.standard_normal((rows, columns)).astype(np.float32) * 0.05, x


def _error(made: BlockWeights, weight: Floats, x: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(x @ (made.dequantize() - weight).T) / np.linalg.norm(x @ weight.T))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block_size", [16, 32, 128, 256])
def test_products_are_nearer_than_with_weights_that_are(block_size: int, symmetric: bool) -> None:
    weight, x = _problem()
    made = quantize_compensating(weight, x.T @ x / len(x), bits=4, block_size=block_size, symmetric=symmetric)
    nearest = quantize_blocks(weight, bits=4, block_size=block_size, symmetric=symmetric, method="search")
    assert made.packed.shape == nearest.packed.shape
    assert _error(made, weight, x) < 0.8 * _error(nearest, weight, x)


def test_inputs_without_correlation_leave_nothing_to_make_up_for() -> None:
    weight, _ = _problem()
    made = quantize_compensating(weight, np.eye(weight.shape[1]), bits=4, block_size=32)
    nearest = quantize_blocks(weight, bits=4, block_size=32, method="search")
    lost, least = (float(np.linalg.norm(each.dequantize() - weight)) for each in (made, nearest))
    assert least <= lost * 1.0001
    assert lost <= 1.01 * least


def test_inputs_that_were_never_seen_do_no_harm() -> None:
    weight, x = _problem()
    x[:, 40:80] = 0
    made = quantize_compensating(weight, x.T @ x / len(x), bits=4, block_size=32)
    idle = np.abs(made.dequantize() - weight)[:, 40:80]
    assert idle.max() < 0.2 * np.abs(weight).max()


@pytest.mark.parametrize("spoilt", ["weight", "moments"])
def test_what_is_not_finite_is_refused(spoilt: str) -> None:
    weight, x = _problem(8, 32)
    moments = x.T @ x
    (weight if spoilt == "weight" else moments)[0, 0] = np.nan
    with pytest.raises(ExportError, match="not finite"):
        quantize_compensating(weight, moments, bits=4, block_size=32)


def test_outputs_side_by_side() -> None:
    weight, _ = _problem()
    whole = quantize_blocks(weight, bits=4, block_size=32, symmetric=False)
    again = side_by_side([whole.rows(0, 10), whole.rows(10, 64)])
    assert np.array_equal(again.dequantize(), whole.dequantize())


def test_moments_are_those_of_the_inputs_as_each_weight_meets_them() -> None:
    """Rotated or not, and with a norm's gain in the weight: the products' own second moments are the same."""
    model = AutoModelForCausalLM.from_pretrained(decoders.source("llama", seed=3)).eval()
    layer = "model.layers.0"
    with torch.no_grad():
        model.get_parameter(f"{layer}.input_layernorm.weight").uniform_(0.5, 2)
    width = model.config.hidden_size
    parameter, gain = f"{layer}.self_attn.q_proj.weight", f"{layer}.input_layernorm.weight"
    wanted = {
        "plain": Rotated(parameter=parameter),
        "turned": Rotated(parameter=parameter, inputs=16),
        "folded": Rotated(parameter=parameter, gain=gain, inputs=width),
    }
    products = {}

    def quantize(weight: Floats, moments: NDArray[np.float64]) -> BlockWeights:
        products[len(products)] = weight.astype(np.float64) @ moments @ weight.T.astype(np.float64)
        return quantize_blocks(weight, bits=4, block_size=16)

    found = calibrated_blocks(model, [list(range(10, 40)), list(range(50, 80))], wanted, quantize)
    assert list(found) == list(wanted)
    for each in products.values():
        assert np.abs(each - products[0]).max() < 1e-5 * np.abs(products[0]).max()


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_a_calibrated_decoder_is_proven(architecture: str, rotate: bool) -> None:
    how = QuantizationOptions(method="gptq", block_size=32, rotate=rotate, symmetric=rotate)
    directory = decoders.proven(decoders.source(architecture), precision="int4", quantization=how)
    manifest = Manifest.read(directory)
    assert manifest.passes["calibrate"] == sum("layers." in name for name in manifest.weights) > 0


def test_experts_are_searched_and_the_rest_calibrated() -> None:
    how = QuantizationOptions(method="gptq", block_size=32)
    directory = decoders.exported(decoders.source("mixtral"), precision="int4", quantization=how)
    manifest = Manifest.read(directory)
    assert 0 < manifest.passes["calibrate"] < len(manifest.weights)


def test_a_text_of_ones_own(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(decoders.source("llama"))
    usual = calibration_sequences(tokenizer, 2048)
    assert len(usual) == SEQUENCES
    assert len({len(ids) for ids in usual}) == 1
    path = tmp_path / "text.txt"
    path.write_text("Which bread is baked today? " * 40)
    own = calibration_sequences(tokenizer, 2048, path)
    assert own
    assert own != usual
    assert len({len(ids) for ids in own}) == 1


@pytest.mark.parametrize(("content", "told"), [(b"short", "too few"), (b"\xff\xfe" * 400, "UTF-8")])
def test_a_text_that_does_not_do_is_named(content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(ExportError, match=rf"text\.txt.*{told}"):
        calibration_sequences(AutoTokenizer.from_pretrained(decoders.source("llama")), 2048, path)


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_a_text_that_nothing_reads_is_refused(precision: str, tmp_path: Path) -> None:
    how = QuantizationOptions(calibration=Path(__file__), method="search" if precision == "int4" else None)
    with pytest.raises(ExportError, match=r"calibration does nothing with (precision|method) .*(int4 can take|gptq)"):
        export("demo", tmp_path / "d", precision=precision, quantization=how)

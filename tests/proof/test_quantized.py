"""The proof of quantized decoders: it holds, and every fault fails it at the check that is there for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from bento_kv import demo
from bento_kv.contract.manifest import Manifest
from bento_kv.contract.verification import Verification
from bento_kv.proof.parity import TorchReference
from bento_kv.proof.proof import prove
from bento_kv.proof.report import render
from tests import decoders
from tests.damage import change_graph, set_attention
from tests.quantized import blocks, change_tensors, coarse, quantize_decoder, to_integers

Arrays = dict[str, NDArray[np.generic]]


def _prove(directory: Path, source: Path) -> Verification:
    return prove(directory, lambda manifest: TorchReference(str(source), manifest))


def _checks(record: Verification) -> dict[str, float | None]:
    return {check.id: check.measured for layer in (record.export, record.loop) for check in layer.checks}


def _failed(record: Verification) -> set[str]:
    return {check.id for layer in (record.export, record.loop) for check in layer.checks if not check.passed}


@pytest.fixture(scope="module")
def _int4(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = Path(shutil.copytree(decoders.exported(), tmp_path_factory.mktemp("int4") / "decoder"))
    quantize_decoder(directory, tiny_source, blocks(4, 32))
    return directory


@pytest.fixture
def int4(_int4: Path, tmp_path: Path) -> Path:
    """A quantized decoder that a test may damage; it has not been proven yet."""
    return Path(shutil.copytree(_int4, tmp_path / "decoder"))


def test_a_quantized_decoder_is_proven(int4: Path, tiny_source: Path) -> None:
    record = _prove(int4, tiny_source)
    assert record.passed, render(record)
    measured = _checks(record)
    # Without its quantization it is the reference to rounding; with it, it is near.
    for exact in ("prefill-logits", "step0-cache", "decode-logits", "long-past", "far-positions"):
        assert 0 < (measured[exact] or 0) < 1e-5
    assert 0.05 < (measured["weights-int4"] or 0) < 0.15
    for phase in ("prefill", "decode"):
        assert (measured[f"quality-kl-{phase}"] or 0) > 0.001
    for mode in ("full", "batch"):
        assert measured[f"alone-equals-together-{mode}"] == 0.0
    assert measured["cached-equals-uncached-full"] == 0.0
    assert record.golden


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """The export's own decoders of both precisions, that a test may damage."""
    for precision in ("int8", "int4"):
        shutil.copytree(decoders.exported(precision=precision), tmp_path / "exported" / precision)
    return tmp_path / "exported"


@pytest.mark.parametrize(("precision", "bits"), [("int8", {8}), ("int4", {4, 8})])
def test_what_is_exported_is_proven(precision: str, bits: set[int], exported: Path, tiny_source: Path) -> None:
    record = _prove(exported / precision, tiny_source)
    assert record.passed, render(record)
    measured = _checks(record)
    assert {int(id[-1]) for id in measured if id.startswith("weights-int")} == bits
    assert measured["cached-equals-uncached-full"] == measured["alone-equals-together-batch"] == 0.0
    assert 0 < (measured["prefill-logits"] or 0) < 1e-5


def _coarser_tokens(model: onnx.ModelProto) -> None:
    """Activations in seven steps, not in 255."""
    step = next(tensor for tensor in model.graph.initializer if tensor.name == "quantization.step")
    step.CopyFrom(onnx.numpy_helper.from_array(np.float32(1 / 3), step.name))


def test_coarse_activations_fail_at_the_quality_of_what_meets_them(exported: Path, tiny_source: Path) -> None:
    change_graph(exported / "int8", _coarser_tokens, manifest={})
    failed = _failed(_prove(exported / "int8", tiny_source))
    assert {"quality-kl-prefill", "quality-kl-decode"} <= failed
    assert not failed & {"float-twin", "prefill-logits", "weights-int8", "weight-blocks-int8"}


def test_a_fault_in_one_of_two_graphs_leaves_no_twin(exported: Path, tiny_source: Path) -> None:
    change_graph(exported / "int4", lambda model: set_attention(model, 1, "scale", 0.2), manifest={})
    assert _failed(_prove(exported / "int4", tiny_source)) == {"float-twin"}


@pytest.mark.parametrize("bits", [4, 8])
def test_zero_points_biases_and_other_sizes_are_proven(bits: int, tmp_path: Path) -> None:
    source = decoders.source("qwen2")  # has biases
    shutil.copytree(decoders.exported(source), tmp_path / "decoder")
    quantize_decoder(tmp_path / "decoder", source, blocks(bits, 16, symmetric=False))
    record = _prove(tmp_path / "decoder", source)
    assert record.passed, render(record)
    assert f"weights-int{bits}" in _checks(record)


@pytest.mark.parametrize(("architecture", "changes"), [("gpt2", {}), ("gpt_neox", {"rotary_pct": 1.0})])
def test_matrices_stored_the_other_way_round_or_in_another_order_are_proven(
    architecture: str, changes: dict[str, float], tmp_path: Path
) -> None:
    """GPT-2 keeps its matrices transposed; GPT-NeoX interleaves queries, keys and values by head."""
    source = decoders.source(architecture, **changes)
    shutil.copytree(decoders.exported(source), tmp_path / "decoder")
    quantize_decoder(tmp_path / "decoder", source, blocks(4, 32))
    record = _prove(tmp_path / "decoder", source)
    assert record.passed, render(record)


def test_an_embedding_that_shares_the_quantized_head_is_proven(tmp_path: Path) -> None:
    source = decoders.source(tie_word_embeddings=True)
    shutil.copytree(decoders.exported(source), tmp_path / "decoder")
    shutil.copytree(tmp_path / "decoder", tmp_path / "integers")
    quantize_decoder(tmp_path / "decoder", source, blocks(8, 32), embedding=True)
    to_integers(tmp_path / "integers", source, embedding=True)
    for directory in (tmp_path / "decoder", tmp_path / "integers"):
        record = _prove(directory, source)
        assert record.passed, render(record)


def test_products_of_integers_are_proven_and_their_faults_are_found(tiny_source: Path, tmp_path: Path) -> None:
    """Activations rounded to 8 bits by token, weights by output; law 2 holds for them to the bit."""
    shutil.copytree(decoders.exported(), tmp_path / "decoder")
    names = to_integers(tmp_path / "decoder", tiny_source)
    record = _prove(tmp_path / "decoder", tiny_source)
    assert record.passed, render(record)
    measured = _checks(record)
    assert 0 < (measured["prefill-logits"] or 0) < 1e-5
    assert 0.003 < (measured["weights-int8"] or 0) < 0.01

    def change(arrays: Arrays) -> None:
        arrays[f"{names[1]}.column_scales"][5] *= 2  # type: ignore[operator]

    shutil.copytree(tmp_path / "decoder", tmp_path / "scales")
    change_tensors(tmp_path / "scales", change)
    assert "weight-blocks-int8" in _failed(_prove(tmp_path / "scales", tiny_source))

    def coarsen(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            if node.op_type == "Mul" and node.input[1] == "int.inverse":
                node.input[1] = "int.coarse"
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1 / 3), "int.coarse"))

    shutil.copytree(tmp_path / "decoder", tmp_path / "steps")
    change_graph(tmp_path / "steps", coarsen, manifest={})
    failed = _failed(_prove(tmp_path / "steps", tiny_source))
    assert {"quality-kl-prefill", "quality-kl-decode"} <= failed
    assert not failed & {"float-twin", "prefill-logits", "weights-int8"}


def _swap(arrays: Arrays, one: str, other: str) -> None:
    for kind in ("q4", "scales"):
        arrays[f"{one}.{kind}"], arrays[f"{other}.{kind}"] = arrays[f"{other}.{kind}"], arrays[f"{one}.{kind}"]


def test_doubled_scales_fail_at_the_weight(int4: Path, tiny_source: Path) -> None:
    name = list(Manifest.read(int4).weights)[2]

    def change(arrays: Arrays) -> None:
        arrays[f"{name}.scales"] = arrays[f"{name}.scales"] * np.float32(2)

    change_tensors(int4, change)
    record = _prove(int4, tiny_source)
    assert {"weights-int4", "weight-blocks-int4"} <= _failed(record)
    # The graph is right, and is proven to be.
    assert not _failed(record) & {"float-twin", "prefill-logits", "decode-logits", "step0-cache"}
    assert any(name in check.explain for check in record.export.checks if check.id == "weights-int4")


def test_one_doubled_scale_of_a_single_block_fails(int4: Path, tiny_source: Path) -> None:
    name = list(Manifest.read(int4).weights)[-1]

    def change(arrays: Arrays) -> None:
        arrays[f"{name}.scales"][17, 1] *= 2  # type: ignore[operator]

    change_tensors(int4, change)
    failed = _failed(_prove(int4, tiny_source))
    assert "weight-blocks-int4" in failed
    assert "weights-int4" not in failed


def test_swapped_layers_fail_at_the_weight(int4: Path, tiny_source: Path) -> None:
    names = [name for name, parts in Manifest.read(int4).weights.items() if "mlp.down_proj" in parts[0]]
    change_tensors(int4, lambda arrays: _swap(arrays, names[0], names[1]))
    failed = _failed(_prove(int4, tiny_source))
    assert {"weights-int4", "weight-blocks-int4"} <= failed
    assert not failed & {"float-twin", "prefill-logits"}


def test_a_manifest_that_swaps_them_too_fails_at_the_twin_s_numbers(int4: Path, tiny_source: Path) -> None:
    """Weights in each other's place, and names that say so: near their floats, and not the model."""
    path = int4 / "manifest.json"
    document = json.loads(path.read_text())
    names = [name for name, parts in document["weights"].items() if "mlp.down_proj" in parts[0]]
    document["weights"][names[0]], document["weights"][names[1]] = (document["weights"][name] for name in names[::-1])
    path.write_text(json.dumps(document))
    change_tensors(int4, lambda arrays: _swap(arrays, names[0], names[1]))
    failed = _failed(_prove(int4, tiny_source))
    assert {"prefill-logits", "decode-logits"} <= failed
    assert not failed & {"float-twin", "weights-int4"}


@pytest.mark.parametrize(
    "change",
    [
        lambda model: set_attention(model, 1, "scale", 0.2),
        lambda model: set_attention(model, 0, "do_rotary", 0),
    ],
)
def test_a_fault_beside_the_weights_fails_at_the_twin_s_numbers(
    change: Callable[[onnx.ModelProto], None], int4: Path, tiny_source: Path
) -> None:
    change_graph(int4, change, manifest={})
    failed = _failed(_prove(int4, tiny_source))
    assert {"prefill-logits", "decode-logits"} <= failed
    assert not failed & {"float-twin", "weights-int4", "weight-blocks-int4"}


def _other_name(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "MatMulNBits")
    node.input[2] = next(n.input[2] for n in reversed(model.graph.node) if n.op_type == "MatMulNBits")


def _other_operator(model: onnx.ModelProto) -> None:
    rounded = [
        onnx.helper.make_node("QuantizeLinear", ["logits.float", "logits.step"], ["logits.rounded"]),
        onnx.helper.make_node("DequantizeLinear", ["logits.rounded", "logits.step"], ["logits"]),
    ]
    model.graph.node[-1].output[0] = "logits.float"
    model.graph.node.extend(rounded)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.1), "logits.step"))


@pytest.mark.parametrize(
    ("change", "weights", "message"),
    [
        (_other_name, None, "is not one weight"),
        (_other_operator, None, "QuantizeLinear"),
        (None, {}, "does not say what layers.0"),
        (
            None,
            {"layers.0.attention.qkv.weight": ["model.layers.0.no_such.weight"]},
            "no parameter model.layers.0.no_such",
        ),
        (None, {"layers.0.attention.qkv.weight": ["model.layers.0.mlp.up_proj.weight"]}, "the reference's"),
        (None, {"nothing": ["model.layers.0.mlp.up_proj.weight"]}, "no graph has it"),
    ],
)
def test_what_has_no_twin_is_not_proven(
    change: Callable[[onnx.ModelProto], None] | None,
    weights: dict[str, list[str]] | None,
    message: str,
    int4: Path,
    tiny_source: Path,
) -> None:
    known = {name: list(parts) for name, parts in Manifest.read(int4).weights.items()}
    if weights == {}:
        del known["layers.0.attention.qkv.weight"]
    change_graph(int4, change or (lambda _: None), manifest={"weights": {**known, **(weights or {})}})
    record = _prove(int4, tiny_source)
    assert _failed(record) == {"float-twin"}
    assert message in next(check.explain for check in record.export.checks if check.id == "float-twin")
    assert not record.loop.checks


def test_too_few_bits_fail_at_the_quality(tmp_path: Path) -> None:
    """On a trained model. What has been rounded to two bits is far from its floats too."""
    shutil.copytree(decoders.exported(decoders.DEMO), tmp_path / "decoder")
    quantize_decoder(tmp_path / "decoder", demo.path(), coarse(2))
    record = prove(tmp_path / "decoder", lambda manifest: TorchReference("demo", manifest))
    failed = _failed(record)
    assert {f"quality-{what}-{phase}" for what in ("kl", "top1") for phase in ("prefill", "decode")} <= failed
    assert "weights-int4" in failed
    assert not failed & {"float-twin", "prefill-logits", "decode-logits", "greedy-tokens"}

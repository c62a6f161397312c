"""Float twins of decoders with a graph for prefill and one for decoding: there is one twin, or no proof."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from bento_kv.contract.files import MODEL_FILE
from bento_kv.contract.manifest import Manifest
from bento_kv.contract.verification import Check
from bento_kv.errors import VerificationError
from bento_kv.proof.parity import TorchReference
from bento_kv.proof.twin import make_twin
from tests import decoders
from tests.damage import change_graph, set_attention
from tests.quantized import blocks, quantize_decoder, to_integers

PREFILL = "prefill.onnx"


@pytest.fixture(scope="module")
def _pair(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Integers for prefill, 4 bits for decoding, of the same weights."""
    folder = tmp_path_factory.mktemp("pair")
    shutil.copytree(decoders.exported(), folder / "decoder")
    shutil.copytree(folder / "decoder", folder / "integers")
    to_integers(folder / "integers", tiny_source)
    quantize_decoder(folder / "decoder", tiny_source, blocks(4, 32))
    shutil.copyfile(folder / "integers" / MODEL_FILE, folder / "decoder" / PREFILL)
    change_graph(folder / "decoder", lambda _: None, manifest={"graphs": [PREFILL, MODEL_FILE]})
    return folder / "decoder"


@pytest.fixture
def pair(_pair: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(_pair, tmp_path / "decoder"))


def _twin(directory: Path, source: Path, target: Path) -> dict[str, Check]:
    manifest = Manifest.read(directory)
    target.mkdir()
    checks = make_twin(directory, manifest, TorchReference(str(source), manifest), target)
    return {check.id: check for check in checks}


def test_two_graphs_have_one_twin(pair: Path, tiny_source: Path, tmp_path: Path) -> None:
    checks = _twin(pair, tiny_source, tmp_path / "twin")
    assert all(check.passed for check in checks.values())
    assert set(checks) == {"float-twin", *(f"weight{kind}-int{bits}" for kind in ("s", "-blocks") for bits in (4, 8))}
    manifest = Manifest.read(tmp_path / "twin")
    assert (manifest.precision, manifest.weights, manifest.graphs) == ("fp32", {}, (PREFILL, MODEL_FILE))
    # The weights are stored once for both, in fp32.
    stored = (tmp_path / "twin" / "twin.onnx.data").stat().st_size
    assert stored < 1.5 * sum(file.stat().st_size for file in (tiny_source).glob("*.safetensors"))


def test_weights_beyond_the_range_that_the_manifest_says_are_found(
    pair: Path, tiny_source: Path, tmp_path: Path
) -> None:
    """Their products would overflow on some processors, as the session is not asked to be precise."""
    change_graph(pair, lambda _: None, manifest={"reduce_range": True})
    check = _twin(pair, tiny_source, tmp_path / "twin")["float-twin"]
    assert not check.passed
    assert "beyond 64, though the manifest says that their range is reduced" in check.explain


def _scale(model: onnx.ModelProto) -> None:
    set_attention(model, 1, "scale", 0.2)


def _crossed(model: onnx.ModelProto) -> None:
    """Two layers' normalizations in each other's place."""
    first, second = (f"model.model.layers.{layer}.post_attention_layernorm.weight" for layer in (0, 1))
    names = {first: second, second: first}
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


@pytest.mark.parametrize("change", [_scale, _crossed])
def test_graphs_that_differ_beside_their_quantization_have_none(
    change: Callable[[onnx.ModelProto], None], pair: Path, tiny_source: Path, tmp_path: Path
) -> None:
    change_graph(pair, change, manifest={})
    check = _twin(pair, tiny_source, tmp_path / "twin")["float-twin"]
    assert not check.passed
    assert "prefill.onnx and model.onnx compute different things" in check.explain


def _other_step(model: onnx.ModelProto) -> None:
    """Rounded with one token's step, and multiplied by another's."""
    first, second = [node for node in model.graph.node if node.op_type == "MatMulIntegerToFloat"][:2]
    last = next(node for node in model.graph.node if second.output[0] in node.input)
    last.input[1] = first.output[0].replace("/product", "/steps")


def _factor(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "MatMulIntegerToFloat")
    model.graph.initializer.append(onnx.helper.make_tensor("other", onnx.TensorProto.FLOAT, [], [1.5]))
    node.input[2] = "other"


def _other_zero(model: onnx.ModelProto) -> None:
    """Rounded around 128, and multiplied as if around another number."""
    node = next(node for node in model.graph.node if node.op_type == "MatMulIntegerToFloat")
    model.graph.initializer.append(onnx.helper.make_tensor("other", onnx.TensorProto.UINT8, [], [127]))
    node.input[4] = "other"


@pytest.mark.parametrize("change", [_other_step, _other_zero, _factor])
def test_products_of_integers_of_another_form_have_none(
    change: Callable[[onnx.ModelProto], None], pair: Path, tiny_source: Path, tmp_path: Path
) -> None:
    model = onnx.load(pair / PREFILL)
    change(model)
    onnx.save(model, pair / PREFILL)
    checks = _twin(pair, tiny_source, tmp_path / "twin")
    assert list(checks) == ["float-twin"]
    assert not checks["float-twin"].passed
    assert "prefill.onnx: what" in checks["float-twin"].explain


def test_a_place_that_cannot_be_written_is_named(pair: Path, tiny_source: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(pair)
    reference = TorchReference(str(tiny_source), manifest)
    with pytest.raises(VerificationError, match=r"cannot be written to .*TMPDIR"):
        make_twin(pair, manifest, reference, tmp_path / "no-such-folder")

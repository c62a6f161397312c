"""Threads and providers of a session."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from bento_kv.contract.quantization import FULL_RANGE, REDUCED_RANGE
from bento_kv.errors import BentoKVError, DecoderError, IntegrityError
from bento_kv.runtime.session import open_session


def test_a_session_has_the_threads_asked_for_and_rests_between_runs(tiny_decoder: Path) -> None:
    options = open_session(tiny_decoder / "model.onnx", threads=1).get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_a_provider_that_is_not_installed(tiny_decoder: Path) -> None:
    with pytest.raises(DecoderError, match="NoSuchProvider is not in the installed onnxruntime"):
        open_session(tiny_decoder / "model.onnx", providers=["NoSuchProvider"])


def test_missing_weights_are_named(tiny_decoder: Path) -> None:
    (tiny_decoder / "model.onnx.data").unlink()
    with pytest.raises(IntegrityError, match="weights file is missing"):
        open_session(tiny_decoder / "model.onnx")


def test_weights_that_are_cut_off_are_refused(tiny_decoder: Path) -> None:
    data = tiny_decoder / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:100_000])
    with pytest.raises(BentoKVError):
        open_session(tiny_decoder / "model.onnx")


def test_a_file_that_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(DecoderError, match=f"onnxruntime {ort.__version__} does not load"):
        open_session(tmp_path / "model.onnx")


@pytest.mark.parametrize("tokens", [1, 2, 16])
@pytest.mark.parametrize("top", [FULL_RANGE, REDUCED_RANGE])
def test_products_of_integers_are_exact_on_any_processor(top: int, tokens: int, tmp_path: Path) -> None:
    """Of the largest activations and weights, two at a time, the sum does not fit into 16 bits in the full range."""
    rng = np.random.default_rng(0)
    weight = rng.choice([-top, top, 3], (32, 256)).astype(np.int8)
    constants = {
        "weight": weight,
        "one": np.float32(1),
        "scales": np.ones(32, np.float32),
        "zero": np.uint8(128),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Transpose", ["weight"], ["turned"], perm=[1, 0]),
            helper.make_node(
                "MatMulIntegerToFloat", ["x", "turned", "one", "scales", "zero"], ["y"], domain="com.microsoft"
            ),
        ],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["tokens", 256])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["tokens", 32])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    domains = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=10), tmp_path / "product.onnx")
    x = rng.choice([0, 255, 250], (tokens, 256)).astype(np.uint8)
    session = open_session(tmp_path / "product.onnx", reduce_range=top == REDUCED_RANGE)
    (y,) = session.run(None, {"x": x})
    assert np.array_equal(y, (x.astype(np.int64) - 128) @ weight.T.astype(np.int64))

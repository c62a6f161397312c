"""Quantized weights as arrays: what the runtime's operators make of them, and how much is lost."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bento_kv.contract.quantization import BlockWeights, pack, unpack
from bento_kv.errors import ExportError
from bento_kv.export.quantize import Method, quantize_blocks, quantize_columns

Floats = NDArray[np.float32]


def _weight(rows: int = 48, columns: int = 192, seed: int = 0) -> Floats:
    """Heavy tails, as trained weights have, and a block of zeros."""
    weight = np.random.default_rng(seed).standard_t(4, (rows, columns)).astype(np.float32) * 0.05
    weight[3, :128] = 0
    return weight


def _lost(weight: Floats, dequantized: Floats) -> float:
    return float(np.linalg.norm(dequantized - weight) / np.linalg.norm(weight))


def _matmul_nbits(x: Floats, weights: BlockWeights, accuracy_level: int) -> Floats:
    """What the runtime's operator computes."""
    arrays = {"packed": weights.packed, "scales": weights.scales}
    if weights.zero_points is not None:
        arrays["zero_points"] = weights.zero_points
    node = helper.make_node(
        "MatMulNBits",
        ["x", *arrays],
        ["y"],
        domain="com.microsoft",
        K=weights.in_features,
        N=weights.out_features,
        bits=weights.bits,
        block_size=weights.block_size,
        accuracy_level=accuracy_level,
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [x.shape[0], weights.out_features])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: Floats = session.run(None, {"x": x})[0]
    return result


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block_size", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("columns", [192, 200])
def test_the_operator_computes_with_what_dequantize_gives(
    bits: int, block_size: int, symmetric: bool, columns: int
) -> None:
    weight = _weight(columns=columns)
    weights = quantize_blocks(weight, bits=bits, block_size=block_size, symmetric=symmetric, method="search")
    x = np.random.default_rng(1).normal(size=(5, columns)).astype(np.float32)
    floats = weights.dequantize()
    assert floats.shape == weight.shape
    for level, limit in ((0, 1e-4), (1, 1e-4), (4, 2e-2)):  # 4 computes with activations of 8 bits
        got = _matmul_nbits(x, weights, level)
        assert np.abs(got - x @ floats.T).max() <= limit * np.abs(got).max(), level


@pytest.mark.parametrize("method", ["rtn", "search"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "least", "most"), [(4, 0.05, 0.13), (8, 0.002, 0.009)])
def test_as_much_is_lost_as_the_bits_say(method: Method, symmetric: bool, bits: int, least: float, most: float) -> None:
    weight = _weight()
    weights = quantize_blocks(weight, bits=bits, block_size=32, symmetric=symmetric, method=method)
    assert least < _lost(weight, weights.dequantize()) < most
    assert weights.nbytes < 1.3 * weight.nbytes * bits / 32
    assert (weights.dequantize()[3, :128] == 0).all()


@pytest.mark.parametrize(("bits", "slack"), [(4, 1e-4), (8, 0.02)])  # float32 tells 8-bit errors apart no better
@pytest.mark.parametrize("symmetric", [True, False])
def test_search_loses_less_than_rounding_in_every_block(bits: int, slack: float, symmetric: bool) -> None:
    weight = _weight(rows=64, columns=256)

    def by_block(method: Method) -> Floats:
        floats = quantize_blocks(weight, bits=bits, block_size=64, symmetric=symmetric, method=method).dequantize()
        errors: Floats = np.square(floats - weight).reshape(-1, 64).sum(axis=1)
        return errors

    nearest, searched = by_block("rtn"), by_block("search")
    assert (searched <= nearest * (1 + slack) + 1e-12).all()
    assert searched.sum() < 0.95 * nearest.sum()


def test_an_outlier_of_either_sign_is_kept() -> None:
    """The range has one step more below than above; the outlier takes that side."""
    weight = np.random.default_rng(0).normal(0, 0.02, (2, 64)).astype(np.float32)
    weight[0, 5], weight[1, 9] = 0.5, -0.5
    floats = quantize_blocks(weight, bits=4, block_size=64).dequantize()
    assert floats[0, 5] == pytest.approx(0.5)
    assert floats[1, 9] == pytest.approx(-0.5)


@pytest.mark.parametrize("symmetric", [True, False])
def test_pieces_do_not_change_the_result(symmetric: bool) -> None:
    """More rows than are worked on at once, against each of them alone."""
    weight = _weight(rows=1500, columns=96)
    whole = quantize_blocks(weight, bits=4, block_size=32, symmetric=symmetric, method="search")
    for row in (0, 681, 682, 683, 1499):
        alone = quantize_blocks(weight[row : row + 1], bits=4, block_size=32, symmetric=symmetric, method="search")
        assert np.array_equal(whole.rows(row, row + 1).dequantize(), alone.dequantize())


@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e-20, 1e15])
def test_magnitudes_at_the_end_of_the_range_stay_finite(scale: float) -> None:
    weight = (_weight() * np.float32(scale)).astype(np.float32)
    for symmetric in (True, False):
        for method in ("rtn", "search"):
            floats = quantize_blocks(weight, bits=4, block_size=32, symmetric=symmetric, method=method).dequantize()
            assert np.isfinite(floats).all()
            assert np.abs(floats - weight).max() <= 0.25 * max(np.abs(weight).max(), 1e-29)
    columns = quantize_columns(weight)
    assert np.isfinite(columns.dequantize()).all()


@pytest.mark.parametrize(("reduce_range", "top"), [(False, 127), (True, 64)])
def test_columns_have_a_scale_each(reduce_range: bool, top: int) -> None:
    weight = _weight() * np.geomspace(1e-3, 1e3, 48, dtype=np.float32)[:, None]
    columns = quantize_columns(weight, reduce_range=reduce_range)
    assert columns.values.shape == (192, 48)
    assert columns.values.min() >= -top
    errors = np.abs(columns.dequantize() - weight)
    assert (errors <= 0.501 * columns.scales[:, None]).all()
    assert (np.abs(columns.values).max(axis=0) == top).all()


def test_what_is_no_number_is_refused() -> None:
    weight = _weight()
    weight[7, 11] = np.nan
    with pytest.raises(ExportError, match="not finite"):
        quantize_blocks(weight, bits=4, block_size=32)
    with pytest.raises(ExportError, match="not finite"):
        quantize_columns(weight)
    with pytest.raises(ExportError, match="5 bits in blocks of 32"):
        quantize_blocks(_weight(), bits=5, block_size=32)


@pytest.mark.parametrize("count", [6, 7])
def test_packing_is_undone(count: int) -> None:
    values = np.random.default_rng(0).integers(0, 16, (3, count), dtype=np.uint8)
    packed = pack(values, 4)
    assert packed.shape == (3, -(-count // 2))
    assert packed[0, 0] == values[0, 0] + 16 * values[0, 1]
    assert np.array_equal(unpack(packed, 4)[:, :count], values)

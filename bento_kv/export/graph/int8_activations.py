"""Activations as uint8 with a scale for each token, for products with int8 weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bento_kv.export.graph.nodes import constant


class Tokens:
    """Activations of a graph as uint8, each made once, whatever number of weights it meets."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._quantized: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
        self._zeros: dict[str, ir.Value] = {}  # by how many tokens there are

    def quantized(self, x: ir.Value, before: ir.Node) -> tuple[ir.Value, ir.Value]:
        """x `[..., tokens, K]` as uint8 around 128, and each token's scale `[..., tokens, 1]`."""
        if x not in self._quantized:
            self._quantized[x] = self._quantize(x, before)
        return self._quantized[x]

    def _quantize(self, x: ir.Value, before: ir.Node) -> tuple[ir.Value, ir.Value]:
        model = self._model
        axes = scalar(model, "last_axis", np.array([-1], np.int64))
        flat = scalar(model, "flat", np.array([-1], np.int64))
        sizes = ir.node("Abs", [x], name=f"{x.name}/sizes")
        largest = ir.node("ReduceMax", [sizes.outputs[0], axes], {"keepdims": 1}, name=f"{x.name}/largest")
        # A token of zeros must not be divided by zero.
        least = scalar(model, "least", np.float32(1e-20))
        magnitude = ir.node("Max", [largest.outputs[0], least], name=f"{x.name}/magnitude")
        step = scalar(model, "step", np.float32(1 / 127))
        scale = ir.node("Mul", [magnitude.outputs[0], step], name=f"{x.name}/scale")
        vector = ir.node("Reshape", [scale.outputs[0], flat], name=f"{x.name}/scales")
        model.graph.insert_before(before, [sizes, largest, magnitude, scale, vector])
        zeros = self._zero_points(x, vector.outputs[0], before)
        values = ir.node("QuantizeLinear", [x, vector.outputs[0], zeros], {"axis": -2}, name=f"{x.name}/quantized")
        model.graph.insert_before(before, values)
        return values.outputs[0], scale.outputs[0]

    def _zero_points(self, x: ir.Value, scales: ir.Value, before: ir.Node) -> ir.Value:
        """128 for each token, shared by all activations that are known to be of as many tokens."""
        counts = [dim for dim in (x.shape or [])[:-1] if dim != 1]
        tokens = counts[0] if len(counts) == 1 else None
        named = isinstance(tokens, ir.SymbolicDim) and tokens.value is not None
        known = str(tokens) if named else f"of {x.name}"
        if known not in self._zeros:
            shape = ir.node("Shape", [scales], name=f"{x.name}/shape")
            zero = scalar(self._model, "zero", np.uint8(128))
            zeros = ir.node("Expand", [zero, shape.outputs[0]], name=f"{x.name}/zeros")
            self._model.graph.insert_before(before, [shape, zeros])
            self._zeros[known] = zeros.outputs[0]
        return self._zeros[known]


def scalar(model: ir.Model, name: str, value: NDArray[np.generic] | np.generic) -> ir.Value:
    """A small constant that all of a graph's quantized products share."""
    return initializer(model, f"quantization.{name}", np.asarray(value))


def initializer(model: ir.Model, name: str, array: NDArray[np.generic]) -> ir.Value:
    """A constant of the graph, made when it is first asked for."""
    return model.graph.initializers.get(name) or constant(model, name, array)

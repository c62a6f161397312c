"""Faults of graphs of the in-place layout, whose tokens are packed: `input_ids [tokens]`."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from tests.mutants.surgery import constant, declare, node, rewire, scalar, size


def positions_restart(model: onnx.ModelProto) -> None:
    """position_ids is not used: the tokens of a step are counted from 0."""

    def counted(given: str) -> str:
        tokens = scalar(model, size(model, given, 0))
        own = node(model, "Range", constant(model, 0), tokens, constant(model, 1))
        return node(model, "Add", own, node(model, "Mul", given, constant(model, 0)))

    rewire(model, "position_ids", counted)


def past_times_zero(model: onnx.ModelProto) -> None:
    """The operator is given zeros for the past, and returns them."""
    zero = constant(model, 0, np.float32)
    for value in list(model.graph.input):
        if value.name.startswith("past_key_values"):
            rewire(model, value.name, lambda past: node(model, "Mul", past, zero))


def width_declared(model: onnx.ModelProto) -> None:
    declare(model, "gather_index", 1, 2)


def weight_changed(model: onnx.ModelProto) -> None:
    """One weight matrix is a tenth larger."""
    tensor = next(t for t in model.graph.initializer if len(t.dims) == 2 and t.dims[1] == 96)
    tensor.CopyFrom(numpy_helper.from_array(1.1 * numpy_helper.to_array(tensor), tensor.name))

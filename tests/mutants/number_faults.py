"""Faults of numbers: rows that are mixed, values that are no numbers, and values that are wrong."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from tests.mutants.surgery import causal, constant, joins, node, of_type, past_length, returned, rewire, size

Fault = Callable[[onnx.ModelProto], None]


# Rows.


def mean_over_rows(model: onnx.ModelProto) -> None:
    """A tenth of the rows' mean is added to the logits."""
    tenth, axis = constant(model, 0.1, np.float32), constant(model, [0])
    returned(
        model,
        "logits",
        lambda logits: node(model, "Add", logits, node(model, "Mul", node(model, "ReduceMean", logits, axis), tenth)),
    )


def softmax_over_rows(model: onnx.ModelProto) -> None:
    """A gate of the logits is normalised over the batch."""
    returned(model, "logits", lambda logits: node(model, "Mul", logits, node(model, "Softmax", logits, axis=0)))


def past_of_row_0(model: onnx.ModelProto) -> None:
    """Every row attends to the first row's past; present is right."""
    first = constant(model, [0])
    for join in joins(model):
        past, new = join.input
        row = node(model, "Expand", node(model, "Gather", past, first, axis=0), node(model, "Shape", past))
        seen = node(model, "Concat", row, new, axis=2)
        rewire(model, join.output[0], lambda _, seen=seen: seen)  # type: ignore[misc]


def scale_shared_by_rows(model: onnx.ModelProto) -> None:
    """Activations before the head are quantized to 4 bits with one scale for all rows and tokens."""
    head = producer_of_logits(model)
    rewire(model, head.input[0], lambda hidden: _coarse(model, hidden, None), where=lambda n: n is head)


def _coarse(model: onnx.ModelProto, name: str, axes: str | None) -> str:
    top = node(model, "ReduceMax", node(model, "Abs", name), *([axes] if axes else []), keepdims=1)
    scale = node(model, "Div", top, constant(model, 3.0, np.float32))
    return node(model, "Mul", node(model, "Round", node(model, "Div", name, scale)), scale)


def producer_of_logits(model: onnx.ModelProto) -> onnx.NodeProto:
    return next(n for n in model.graph.node if "logits" in n.output)


# Not a number.


def log_of_logits(model: onnx.ModelProto) -> None:
    """A calibration takes the logarithm of what may be negative."""
    returned(model, "logits", lambda logits: node(model, "Log", logits))


def token_hidden_from_itself(model: onnx.ModelProto) -> None:
    """Less instead of LessOrEqual: the first query has no key, and its softmax runs over minus infinity only."""
    causal(model).op_type = "Less"
    mask_of_infinity(model)


def mask_of_infinity(model: onnx.ModelProto) -> None:
    """The mask adds minus infinity, so a query that sees nothing gets 0/0."""
    lowest = [t for t in model.graph.initializer if not t.dims and t.data_type == TensorProto.FLOAT]
    for tensor in lowest:
        if float(numpy_helper.to_array(tensor)) < -1e30:
            tensor.CopyFrom(numpy_helper.from_array(np.array(-1e38, np.float32), tensor.name))
    for softmax in of_type(model, "Softmax"):
        low = constant(model, -1e30, np.float32)
        infinite = constant(model, -np.inf, np.float32)
        name = softmax.input[0]
        hidden = node(model, "Less", name, low)
        softmax.input[0] = node(model, "Where", hidden, infinite, name)
        for where in model.graph.node:  # what guards against it
            if where.op_type == "Where" and softmax.output[0] in _reads(model, where.input[2]):
                where.op_type = "Max"
                where.input[:] = [where.input[2], where.input[2]]


def _reads(model: onnx.ModelProto, name: str) -> list[str]:
    return [read for n in model.graph.node if name in n.output for read in n.input]


def overflow_in_halves(model: onnx.ModelProto) -> None:
    """Logits are scaled by a million, which fp32 holds and fp16 does not."""
    thousand = constant(model, 1000.0, np.float32)
    returned(model, "logits", lambda logits: node(model, "Mul", node(model, "Mul", logits, thousand), thousand))


def rows_of_present_reversed(model: onnx.ModelProto) -> None:
    """Present comes out with its rows in the opposite order."""
    begin, end, axis, back = (constant(model, [n]) for n in (-1, -(1 << 40), 0, -1))
    for join in joins(model):
        returned(model, join.output[0], lambda whole: node(model, "Slice", whole, begin, end, axis, back))


def undefined_far_in(model: onnx.ModelProto) -> None:
    """A logarithm of the past's length whose argument is negative from 8 positions on."""
    room = node(
        model, "Sub", constant(model, 9.5, np.float32), node(model, "Cast", past_length(model), to=TensorProto.FLOAT)
    )
    scale = node(
        model,
        "Add",
        node(model, "Mul", node(model, "Log", room), constant(model, 0.0, np.float32)),
        constant(model, 1.0, np.float32),
    )
    returned(model, "logits", lambda logits: node(model, "Mul", logits, scale))


# Wrong numbers.


def norm_over_time(model: onnx.ModelProto) -> None:
    """The last norm averages over the sequence axis instead of the hidden one."""
    mean = of_type(model, "ReduceMean")[-1]
    mean.input[1] = constant(model, [1])


def scale_of_lengths(model: onnx.ModelProto) -> None:
    """Scores are divided by the number of new tokens, which a tracer took for another size."""
    tokens = node(model, "Cast", size(model, "input_ids", 1), to=TensorProto.FLOAT)
    for softmax in of_type(model, "Softmax"):
        softmax.input[0] = node(model, "Div", softmax.input[0], tokens)


def weight_changed(model: onnx.ModelProto) -> None:
    """One weight matrix is twice what it was: consistent, and not the model."""
    tensor = next(t for t in model.graph.initializer if list(t.dims) == [64, 96])
    tensor.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(tensor), tensor.name))


def vocabulary_permuted(model: onnx.ModelProto) -> None:
    """The head's columns change places in pairs: each token gets its neighbour's logit."""
    head = next(t for t in model.graph.initializer if list(t.dims) == [64, 300])
    weights = numpy_helper.to_array(head)
    head.CopyFrom(
        numpy_helper.from_array(
            np.ascontiguousarray(weights.reshape(64, 150, 2)[:, :, ::-1].reshape(64, 300)), head.name
        )
    )


def logits_of_cached_steps_scaled(model: onnx.ModelProto) -> None:
    """Behind a past the logits are one percent larger."""
    held = node(model, "Cast", node(model, "Greater", past_length(model), constant(model, 0)), to=TensorProto.FLOAT)
    factor = node(
        model, "Add", node(model, "Mul", held, constant(model, 0.01, np.float32)), constant(model, 1.0, np.float32)
    )
    returned(model, "logits", lambda logits: node(model, "Mul", logits, factor))


def dropout_left_on(model: onnx.ModelProto) -> None:
    """Exported in training mode: a tenth of what goes into the head is dropped, another one in each run."""
    head = producer_of_logits(model)
    hidden = head.input[0]
    kept = node(model, "Greater", node(model, "RandomUniformLike", hidden), constant(model, 0.1, np.float32))
    head.input[0] = node(model, "Mul", hidden, node(model, "Cast", kept, to=TensorProto.FLOAT))


def logits_of_first_token(model: onnx.ModelProto) -> None:
    """Meant to return the last token's logits only, the graph returns the first one's."""
    ends = (constant(model, [n]) for n in (0, 1, 1))
    returned(model, "logits", lambda logits: node(model, "Slice", logits, *ends))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1


def logits_times_zero(model: onnx.ModelProto) -> None:
    """A head whose weights were lost."""
    returned(model, "logits", lambda logits: node(model, "Mul", logits, constant(model, 0.0, np.float32)))


def logits_of_a_bias(model: onnx.ModelProto) -> None:
    """What is left of a head without its weights: one number a token of the vocabulary, whatever is fed."""
    width = model.graph.output[0].type.tensor_type.shape.dim[2].dim_value
    bias = constant(model, np.linspace(-1, 1, width), np.float32)
    returned(
        model,
        "logits",
        lambda logits: node(model, "Add", node(model, "Mul", logits, constant(model, 0.0, np.float32)), bias),
    )


def logits_averaged(model: onnx.ModelProto) -> None:
    """A mean over the vocabulary where a shift by it was meant."""
    axis = constant(model, [-1])

    def mean(logits: str) -> str:
        return node(model, "Expand", node(model, "ReduceMean", logits, axis), node(model, "Shape", logits))

    returned(model, "logits", mean)


def keys_stored_before_rotation(model: onnx.ModelProto) -> None:
    """Present keeps the keys as they were before rotation, and attention takes the past for rotated."""
    for join in joins(model)[::2]:
        past, rotated = join.input
        first = next(n for n in model.graph.node if rotated in n.output)  # key * cos + turned * sin
        plain = next(n for n in model.graph.node if first.input[0] in n.output).input[0]
        stored = node(model, "Concat", past, plain, axis=2)
        returned(model, join.output[0], lambda _, stored=stored: stored)  # type: ignore[misc]

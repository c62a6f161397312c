"""Constants with a pattern: positions, row numbers and causal masks that were computed when a graph was traced."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from bento_kv.repair.builder import Builder
from bento_kv.repair.shapes import LARGEST


def replace_patterns(
    builder: Builder, constants: Mapping[str, NDArray[np.generic]]
) -> dict[str, tuple[str, NDArray[np.generic]]]:
    """Compute such constants from the sizes.

    Returns:
        by name of each constant that was replaced, what is read instead and the value that it had.
    """
    places: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
    for node in builder.model.graph.node:
        for index, name in enumerate(node.input):
            if not _is_parameter(node, index):
                places.setdefault(name, []).append((node, index))
    replaced = {}
    for name, value in constants.items():
        if name not in places or not 1 <= value.ndim <= 5 or not 2 <= value.size <= LARGEST:
            continue
        made = _count_up(builder, value) or _causal(builder, value) or _indices(builder, value)
        if made is None:
            continue
        for node, index in places[name]:
            node.input[index] = made
        replaced[name] = (made, value)
    return replaced


def _count_up(builder: Builder, value: NDArray[np.generic]) -> str | None:
    """Numbers counted up along one axis: `0, 1, 2, ...` or `past, past + 1, ...`."""
    if value.dtype not in (np.int64, np.int32) or value.size != max(value.shape):
        return None
    numbers, sizes = value.ravel().astype(np.int64), builder.sizes
    start = int(numbers[0])
    if not np.array_equal(numbers, np.arange(start, start + value.size)):
        return None
    axis = value.shape.index(value.size)
    if axis == 0 and value.ndim > 1 and start == 0 and value.size == sizes.batch:
        counted = builder.counted(None, builder.batch)
    elif start == sizes.past and value.size == sizes.sequence:
        counted = builder.counted(builder.past, builder.total)
    elif start == 0 and value.size == sizes.past + sizes.sequence:
        counted = builder.counted(None, builder.total)
    elif start == 0 and value.size == sizes.sequence:
        counted = builder.counted(None, builder.sequence)
    elif start == 0 and value.size == sizes.batch:
        counted = builder.counted(None, builder.batch)
    else:
        return None
    shaped = [-1 if size == value.size else 1 for size in value.shape]
    result = builder.reshaped(counted, shaped)
    return result if value.dtype == np.int64 else builder.node("Cast", [result], to=TensorProto.INT32)


def _indices(builder: Builder, value: NDArray[np.generic]) -> str | None:
    """`[batch, ..., past + sequence, 2]`: row and position of each, as one gathers by."""
    sizes = builder.sizes
    total = sizes.past + sizes.sequence
    if value.dtype != np.int64 or value.ndim < 3 or value.shape[-1] != 2:
        return None
    shape = value.shape[:-1]
    if shape[0] != sizes.batch or shape[-1] != total or math.prod(shape) != sizes.batch * total:
        return None
    rows, positions = np.indices((sizes.batch, total))
    if not np.array_equal(value.reshape(sizes.batch, total, 2), np.stack([rows, positions], axis=-1)):
        return None
    ones = [1] * (len(shape) - 2)
    counted = (builder.counted(None, builder.batch), builder.counted(None, builder.total))
    target = builder.concat([builder.batch, *ones, builder.total])
    deeper = builder.concat([builder.batch, *ones, builder.total, 1])
    planes = []
    for numbers, own in zip(counted, ([-1, *ones, 1], [1, *ones, -1]), strict=True):
        plane = builder.node("Expand", [builder.reshaped(numbers, own), target])
        planes.append(builder.node("Reshape", [plane, deeper]))
    return builder.node("Concat", planes, axis=-1)


def _causal(builder: Builder, value: NDArray[np.generic]) -> str | None:
    """`[..., sequence, past + sequence]`: one value up to a token's own position, another behind it."""
    sizes = builder.sizes
    total = sizes.past + sizes.sequence
    if value.ndim < 2 or value.shape[-2:] != (sizes.sequence, total) or math.prod(value.shape[:-2]) != 1:
        return None
    seen = np.arange(total) <= np.arange(sizes.past, total)[:, None]
    plane = value.reshape(sizes.sequence, total)
    kept, hidden = np.unique(plane[seen]), np.unique(plane[~seen])
    if sizes.sequence == 1 and len(kept) == 1 and not hidden.size:
        hidden = _unseen(kept[0])  # a token alone sees everything, so the other value is not in the constant
    if len(kept) != 1 or len(hidden) != 1:
        return None
    queries = builder.reshaped(builder.counted(builder.past, builder.total), [-1, 1])
    behind = builder.node("Greater", [builder.counted(None, builder.total), queries])
    allowed = builder.node("Not", [behind])
    if value.dtype != np.bool_:
        allowed = builder.node("Where", [allowed, builder.constant(kept[0]), builder.constant(hidden[0])])
    elif hidden[0]:
        allowed = behind
    target = builder.concat([*[1] * (value.ndim - 2), builder.sequence, builder.total])
    return builder.node("Reshape", [allowed, target])


def _is_parameter(node: onnx.NodeProto, index: int) -> bool:
    """Whether an input is a shape, axes or bounds, and not what is computed on."""
    if node.op_type == "ConstantOfShape":
        return True
    takes = ("Unsqueeze", "Squeeze", "Reshape", "Expand", "Slice", "Tile", "Pad", "Split", "Resize", "TopK", "CumSum")
    return index > 0 and (node.op_type in takes or node.op_type.startswith("Reduce"))


def _unseen(kept: Any) -> NDArray[np.generic]:
    """What a mask has where a token may not look, if that is plain from what it has where it may."""
    if kept.dtype == np.bool_ and kept:
        return np.array([False])
    if np.issubdtype(kept.dtype, np.floating) and kept == 0:
        return np.array([np.finfo(kept.dtype).min], kept.dtype)
    return np.array([])

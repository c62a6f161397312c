"""Constants of a graph, and what a reshape does to axes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

LARGEST = 2**22  # elements of a constant that is looked at: beyond are weights


def constants(model: onnx.ModelProto) -> dict[str, NDArray[np.generic]]:
    """Those of the graph that are small enough to be a shape or a mask, and lie in it."""
    found = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_location != TensorProto.EXTERNAL and math.prod(tensor.dims) <= LARGEST and tensor.data_type < 16
    }
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            tensor = node.attribute[0].t
            if tensor.data_location != TensorProto.EXTERNAL and tensor.data_type < 16:
                found[node.output[0]] = numpy_helper.to_array(tensor)
    return found


def resolve(target: Sequence[int], source: Sequence[int]) -> list[int]:
    """A reshape's target in numbers: 0 is the input's axis, -1 what is left."""
    shape = [source[index] if size == 0 else size for index, size in enumerate(target)]
    if -1 in shape:
        known = -math.prod(shape)
        shape[shape.index(-1)] = math.prod(source) // known
    return shape


def aligned(source: Sequence[int], shape: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Axes of a reshape's input and output that hold the same elements, in groups as small as can be."""
    head = 0
    while head < min(len(source), len(shape)) and source[head] == shape[head]:
        head += 1
    tail = 0
    while tail < min(len(source), len(shape)) - head and source[-1 - tail] == shape[-1 - tail]:
        tail += 1
    groups = [([index], [index]) for index in range(head)]
    i, j = head, head
    ends = len(source) - tail, len(shape) - tail
    while i < ends[0] or j < ends[1]:
        group, parts = ([i] if i < ends[0] else []), ([j] if j < ends[1] else [])
        i, j = i + len(group), j + len(parts)
        while math.prod(source[k] for k in group) != math.prod(shape[k] for k in parts):
            if math.prod(source[k] for k in group) < math.prod(shape[k] for k in parts) and i < ends[0]:
                group.append(i)
                i += 1
            elif j < ends[1]:
                parts.append(j)
                j += 1
            else:
                break
        groups.append((group, parts))
    groups += [([len(source) - k], [len(shape) - k]) for k in range(tail, 0, -1)]
    if len(groups) > 1 and groups[0] in (([0], []), ([], [0])):
        # A batch of 1 that comes or goes at the front is joined with, or split off, the axis behind it.
        groups[:2] = [(groups[0][0] + groups[1][0], groups[0][1] + groups[1][1])]
    return groups

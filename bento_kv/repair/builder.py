"""Nodes that compute the sizes of a step, and what is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from bento_kv.repair.trial import Sizes

Element = int | str  # of a shape: a number, or the name of a tensor [1] that has it


class Builder:
    """Adds nodes and constants to a graph; only operators that opset 11 has.

    Args:
        model: constants are added to it.
        sizes: of the trace.
        ids: the input of token ids, `[batch, sequence]`.
        past: an input that is a past, and the axis of it that is time.

    Attributes:
        head: nodes to put before all others: they compute the sizes.
        nodes: the graph's, in order; what is made is put behind those that are there.
        batch, sequence, past, total: names of the sizes at run time, int64 tensors `[1]`.
    """

    def __init__(self, model: onnx.ModelProto, sizes: Sizes, ids: str, past: tuple[str, int] | None) -> None:
        self.model = model
        self.sizes = sizes
        self.nodes: list[onnx.NodeProto] = []
        self._count = 0
        self._scalars: dict[str, str] = {}
        self.batch, self.sequence = self.axis_of(ids, 0), self.axis_of(ids, 1)
        if past is None:
            self.past, self.total = self.constant(np.array([0])), self.sequence
        else:
            self.past = self.axis_of(*past)
            self.total = self.node("Add", [self.past, self.sequence])
        for name in (self.batch, self.sequence, self.past, self.total):
            self._scalars[name] = self.reshaped(name, [])
        self.head, self.nodes = self.nodes, []

    def length(self, number: int, *, first: bool = False) -> str | None:
        """The size along a sequence that a number is: of tokens, of all positions, of the past."""
        order = [(self.sizes.past + self.sizes.sequence, self.total), (self.sizes.sequence, self.sequence)]
        if first:
            order.reverse()
        if self.sizes.past > 0:
            order.append((self.sizes.past, self.past))
        return next((name for size, name in order if size == number), None)

    def size(self, number: int, axis: int) -> str | None:
        """The size that an axis of a shape is; the batch comes first."""
        if axis == 0:
            return self.batch if number == self.sizes.batch else None
        found = self.length(number) if number > 1 else None
        return None if found == self.past else found  # a past alone is no shape of what is computed from the tokens

    def node(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        """A node with one output, whose name is returned."""
        self._count += 1
        name = f"repair.{operator}.{self._count}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, value: NDArray[np.generic] | np.generic) -> str:
        self._count += 1
        name = f"repair.constant.{self._count}"
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def axis_of(self, name: str, axis: int) -> str:
        """The size of an axis, `[1]`."""
        return self.node("Gather", [self.node("Shape", [name]), self.constant(np.array([axis]))], axis=0)

    def reshaped(self, name: str, shape: Sequence[int]) -> str:
        return self.node("Reshape", [name, self.constant(np.array(shape, np.int64))])

    def concat(self, elements: Sequence[Element]) -> str:
        """A shape of these elements."""
        parts = [e if isinstance(e, str) else self.constant(np.array([e], np.int64)) for e in elements]
        return self.node("Concat", parts, axis=0)

    def scalar(self, size: str) -> str:
        """One of the sizes without an axis."""
        return self._scalars[size]

    def counted(self, start: str | None, end: str) -> str:
        """`start, start + 1, ..., end - 1`, from 0 unless given; of sizes."""
        first = self.constant(np.array(0)) if start is None else self.scalar(start)
        return self.node("Range", [first, self.scalar(end), self.constant(np.array(1))])

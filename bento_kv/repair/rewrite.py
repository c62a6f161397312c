"""Constants that a tracer made of sizes, back to what they were computed from.

A tracer that runs a model at batch 2 and 3 tokens writes `Reshape(x, [2, 3, 4, 16])`, `Range(0, 3)` and a mask of 3 by 3.
Which number was a size is told by where it stands: an axis of a reshape that its input has too is that axis, a range that
ends at the number of tokens ends at that. What is told so is right for the sizes of the trace; whether it is right for
others is not argued here but tried (`trial`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from bento_kv.repair.builder import Builder, Element
from bento_kv.repair.patterns import replace_patterns
from bento_kv.repair.shapes import aligned, constants, resolve


@dataclass(slots=True)
class Rewriter:
    """One pass over a graph.

    Args:
        model: changed in place.
        builder: makes what is computed from the sizes, in the same model.
        values: by name, what the graph computed at those sizes: inputs and targets of reshapes and expands.
        whole: shapes that the graph computes are told anew too, for constants in what they are computed from.
        slices: bounds of slices that have a size are that size; or a part of a head that happens to be as long.
    """

    model: onnx.ModelProto
    builder: Builder
    values: Mapping[str, NDArray[np.generic]]
    whole: bool = False
    slices: bool = False
    changed: list[str] = field(default_factory=list)  # what was rewritten, in words
    _constants: dict[str, NDArray[np.generic]] = field(default_factory=dict)
    _shapes: dict[str, NDArray[np.generic]] = field(default_factory=dict)

    def run(self) -> None:
        graph = self.model.graph
        self._constants = constants(self.model)
        self._shapes = {**self._constants, **self.values}
        for name, (made, value) in replace_patterns(self.builder, self._constants).items():
            self._shapes[made] = value
            self.changed.append(f"{name}, a constant {list(value.shape)}")
        for node in graph.node:
            handler = {
                "Reshape": self._reshape,
                "Expand": self._expand,
                "ConstantOfShape": self._filled,
                "Range": self._range,
                "Slice": self._slice if self.slices else None,
            }.get(node.op_type)
            if handler is not None and node.domain in ("", "ai.onnx"):
                handler(node)
            self.builder.nodes.append(node)
        nodes = [*self.builder.head, *self.builder.nodes]
        del graph.node[:]
        graph.node.extend(nodes)

    def _reshape(self, node: onnx.NodeProto) -> None:
        source = self._shapes.get(node.input[0])
        target, parts = self._target(node.input[1])
        if source is None or target is None or 0 in source.shape:
            return
        literal = any(attribute.name == "allowzero" and attribute.i for attribute in node.attribute)
        wanted = self._view(node, source.shape, resolve(target, source.shape), literal)
        self._set(node, 1, target, [p if isinstance(p, str) else w for p, w in zip(parts, wanted, strict=True)])

    def _view(self, node: onnx.NodeProto, source: Sequence[int], shape: Sequence[int], literal: bool) -> list[Element]:
        """Each axis of a reshape as what it is of its input's axes: the same, several joined, or a part of one."""
        wanted: list[Element] = list(shape)
        joined: list[int] = []
        for group, parts in aligned(source, shape):
            if len(group) == len(parts) == 1:
                if group == parts and not literal:
                    wanted[parts[0]] = 0  # the same axis of the input
                elif self.whole or self.builder.size(shape[parts[0]], parts[0]) is not None:
                    wanted[parts[0]] = self.builder.axis_of(node.input[0], group[0])
            elif len(parts) == 1:
                joined.append(parts[0])
            elif len(source) == 2 and [shape[p] for p in parts[:2]] == [
                self.builder.sizes.batch,
                self.builder.sizes.sequence,
            ]:
                wanted[parts[0]], wanted[parts[1]] = self.builder.batch, self.builder.sequence
            elif parts:
                joined.append(parts[0])  # the first part of a split takes what the others leave
        if len(joined) == 1:
            wanted[joined[0]] = -1
        return wanted

    def _expand(self, node: onnx.NodeProto) -> None:
        source = self._shapes.get(node.input[0])
        target, parts = self._target(node.input[1])
        if source is None or target is None:
            return
        wanted: list[Element] = []
        for index, size in enumerate(target):
            own = index - len(target) + source.ndim
            if own >= 0 and source.shape[own] == size:
                wanted.append(1)  # as it is
            else:
                wanted.append(self.builder.size(int(size), index) or int(size))
        self._set(node, 1, target, [p if isinstance(p, str) else w for p, w in zip(parts, wanted, strict=True)])

    def _filled(self, node: onnx.NodeProto) -> None:
        target, parts = self._target(node.input[0])
        if target is None:
            return
        wanted = [
            part if isinstance(part, str) else self.builder.size(part, index) or part
            for index, part in enumerate(parts)
        ]
        self._set(node, 0, target, wanted)

    def _target(self, name: str) -> tuple[Sequence[int] | None, list[Element]]:
        """A shape as its numbers; and its elements, those that are computed by name."""
        constant = self._constants.get(name)
        if constant is not None:
            numbers = [int(number) for number in constant.ravel()]
            return numbers, list(numbers)
        value = self.values.get(name)
        if value is not None and self.whole:
            numbers = [int(number) for number in value]
            return numbers, list(numbers)
        maker = next((node for node in self.builder.nodes if name in node.output), None)
        if value is None or maker is None or maker.op_type != "Concat":
            return None, []
        parts: list[Element] = []
        for part in maker.input:
            known = self._constants.get(part)
            parts += [int(number) for number in known.ravel()] if known is not None else [part]
        return ([int(number) for number in value], parts) if len(parts) == value.size else (None, [])

    def _range(self, node: onnx.NodeProto) -> None:
        start, limit = (self._scalar(node.input[index]) for index in (0, 1))
        if limit is None:
            return
        first = start == 0
        end = self.builder.length(limit, first=first)
        if end is not None and limit > 0:
            self._set_scalar(node, 1, limit, end)
        if start and start == self.builder.sizes.past:
            self._set_scalar(node, 0, start, self.builder.past)

    def _slice(self, node: onnx.NodeProto) -> None:
        for index in (1, 2):
            bounds = self._constants.get(node.input[index]) if len(node.input) > index else None
            if bounds is None:
                continue
            numbers = [int(number) for number in bounds.ravel()]
            wanted: list[Element] = [self.builder.length(n) or n if n > 1 else n for n in numbers]
            self._set(node, index, numbers, wanted)

    def _scalar(self, name: str) -> int | None:
        constant = self._constants.get(name)
        return int(constant.ravel()[0]) if constant is not None and constant.size == 1 else None

    def _set(self, node: onnx.NodeProto, index: int, before: Sequence[int], wanted: Sequence[Element]) -> None:
        if list(before) == list(wanted):
            return
        if all(isinstance(element, int) for element in wanted):
            node.input[index] = self.builder.constant(np.array(wanted, np.int64))
        else:
            node.input[index] = self.builder.concat(wanted)
        self.changed.append(f"{node.name or node.output[0]} ({node.op_type} {list(before)})")

    def _set_scalar(self, node: onnx.NodeProto, index: int, before: int, source: str) -> None:
        old = self._constants[node.input[index]]
        scalar = self.builder.scalar(source)
        if old.dtype != np.int64:
            scalar = self.builder.node("Cast", [scalar], to=helper.np_dtype_to_tensor_dtype(old.dtype))
        node.input[index] = scalar
        self.changed.append(f"{node.name or node.output[0]} ({node.op_type}, {before})")

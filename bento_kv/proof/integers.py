"""What is computed with integers in a graph, recognized: weights of 8 bits with a scale for each output.

A product, its activations rounded to 8 bits with a step for each token:

    x ─ QuantizeLinear(step, zero) ─ MatMulIntegerToFloat(weight transposed, 1, scales, zero) ─ Mul(step)

stands for `x @ weight`. What the step is computed from is no matter here: one that does not fit the activations shows in
what the decoder predicts (`quality.py`). A lookup:

    ids ─ Gather(weight) ─ Cast ─ Mul(Gather(scales, ids))

stands for rows of the weight. In both, reshapes may stand between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from bento_kv.proof.structure import RESHAPES

_MOVES = {*RESHAPES, "Expand"}


@dataclass(frozen=True, slots=True)
class Integers:
    """Names of what takes part in a product or a lookup.

    Attributes:
        read: the float activations of a product, the ids of a lookup.
        weight: int8 `[N, K]`.
        scales: of its rows.
        output: the floats.
        factor: of a product, a number that it is multiplied by, and that has to be 1.
    """

    read: str
    weight: str
    scales: str
    output: str
    factor: str = ""


class Dataflow:
    """Who makes a value of a graph, and who reads it."""

    def __init__(self, nodes: Sequence[onnx.NodeProto]) -> None:
        self._makers: dict[str, onnx.NodeProto] = {name: node for node in nodes for name in node.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in nodes:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def source(self, name: str) -> str:
        """The value whose elements a value has."""
        while (node := self._maker(name, *_MOVES)) is not None:
            name = node.input[0]
        return name

    def product(self, node: onnx.NodeProto) -> Integers | None:
        """What a MatMulIntegerToFloat takes part in, None if it is not of the form above."""
        if len(node.input) != 5:
            return None
        values, turned, factor, scales, zero = node.input
        rounding = self._maker(values, "QuantizeLinear")
        transpose = self._maker(turned, "Transpose")
        scaling = self._only_reader(node.output[0], "Mul")
        if rounding is None or transpose is None or scaling is None or len(rounding.input) != 3:
            return None
        x, step, offset = rounding.input
        others = [self.source(name) for name in scaling.input if name != node.output[0]]
        if self.source(offset) != self.source(zero) or others != [self.source(step)]:
            return None
        return Integers(x, transpose.input[0], scales, scaling.output[0], factor)

    def lookup(self, node: onnx.NodeProto) -> Integers | None:
        """What a Gather of integers takes part in, None if it is not of the form above."""
        cast = self._only_reader(node.output[0], "Cast")
        scaling = None if cast is None else self._only_reader(cast.output[0], "Mul")
        if cast is None or scaling is None or any(attribute.i for attribute in node.attribute):  # of axis 0 only
            return None
        others = [self.source(name) for name in scaling.input if name != cast.output[0]]
        gather = self._maker(others[0], "Gather") if len(others) == 1 else None
        if gather is None or gather.input[1] != node.input[1] or any(attribute.i for attribute in gather.attribute):
            return None
        return Integers(node.input[1], node.input[0], gather.input[0], scaling.output[0])

    def _maker(self, name: str, *operators: str) -> onnx.NodeProto | None:
        node = self._makers.get(name)
        return node if node is not None and node.op_type in operators else None

    def _only_reader(self, name: str, operator: str) -> onnx.NodeProto | None:
        readers = self._readers.get(name, [])
        return readers[0] if len(readers) == 1 and readers[0].op_type == operator else None

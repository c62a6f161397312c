"""Products of integers in a graph, recognized: activations of 8 bits times weights of 8 bits, scaled to floats again.

    x ─ QuantizeLinear(step, zero) ─ MatMulInteger(weight, zero) ─ Cast ─ Mul by the step and by the weight's scales

stands for `x @ weight`, rounded. What the step is computed from is no matter here: one that does not fit the activations
shows in the quality of prefill positions (`quality.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from bento_kv.verify.structure import RESHAPES

_MOVES = {*RESHAPES, "Expand"}


@dataclass(frozen=True, slots=True)
class IntegerProduct:
    """Names of what takes part.

    Attributes:
        x: the float activations.
        weight: int8 `[K, N]`.
        scales: of the weight.
        output: the float product.
    """

    x: str
    weight: str
    scales: str
    output: str


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
        while (node := self._makers.get(name)) is not None and node.op_type in _MOVES:
            name = node.input[0]
        return name

    def product_of(self, node: onnx.NodeProto, stored: Mapping[str, object]) -> IntegerProduct | None:
        """What a MatMulInteger takes part in, None if it is not of the form above.

        Args:
            node: the MatMulInteger.
            stored: the graph's initializers by name.
        """
        activations, weight, *zeros = node.input
        rounding = self._makers.get(activations)
        if rounding is None or rounding.op_type != "QuantizeLinear" or weight not in stored or len(zeros) != 1:
            return None
        x, step, *offset = rounding.input
        if [self.source(name) for name in offset] != [self.source(zeros[0])]:
            return None
        scaled = self._scaled(node.output[0], self.source(step), stored)
        return None if scaled is None else IntegerProduct(x, weight, *scaled)

    def _scaled(self, output: str, step: str, stored: Mapping[str, object]) -> tuple[str, str] | None:
        """The scales by which, besides the step, an integer product is multiplied, and the result; each once."""
        factors: list[str] = []
        while len(factors) < 2:
            reader = self._only_reader(output)
            if reader is None or reader.op_type not in ("Cast", "Mul"):
                return None
            others = [name for name in reader.input if name != output]
            if len(others) != (reader.op_type == "Mul"):
                return None
            factors += self._factors(others, step)
            output = reader.output[0]
        rest = [factor for factor in factors if factor != step]
        return (rest[0], output) if len(factors) == 2 and len(rest) == 1 and rest[0] in stored else None

    def _factors(self, names: Sequence[str], step: str) -> list[str]:
        """What is multiplied to get these values; the step is one factor, however it was computed."""
        found = []
        for name in map(self.source, names):
            node = self._makers.get(name)
            whole = name == step or node is None or node.op_type != "Mul"
            found += [name] if node is None or whole else self._factors(node.input, step)
        return found

    def _only_reader(self, name: str) -> onnx.NodeProto | None:
        readers = self._readers.get(name, [])
        return readers[0] if len(readers) == 1 else None

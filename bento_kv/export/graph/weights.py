"""The weights of a graph that are quantized: which, how, and as which arrays each graph stores them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bento_kv.contract.quantization import BlockWeights, side_by_side
from bento_kv.contract.rotation import Rotated
from bento_kv.contract.weight_options import Method
from bento_kv.export.compensate import quantize_compensating
from bento_kv.export.graph.nodes import array_of, chooses
from bento_kv.export.graph.origins import Origins
from bento_kv.export.quantize import quantize_blocks, quantize_columns

_LEAST_WIDTH = 32
_LEAST_BLOCK = 16
COLUMN_BITS = 8

Arrays = dict[str, NDArray[np.generic]]
Quantize = Callable[[NDArray[np.float32], NDArray[np.float64]], BlockWeights]
# From what to quantize, by a name for it, and how; by name, as far as it could be.
Calibrate = Callable[[Mapping[str, Rotated], Quantize], dict[str, BlockWeights]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """How weights are stored.

    Attributes:
        bits: of the layers' weights, 4 or 8.
        block_size: inputs that share a scale.
        symmetric: without zero points.
        method: `gptq` rounds with a look at the inputs that some text gives, see `export.compensate`; `search` and `rtn`
            need none, see `export.quantize`. What has no inputs to look at, such as experts, is searched.
        head_bits: of the weights that make the logits, and of the embedding where they are tied: 8, in columns, or 4, in
            blocks.
        edge_layers: so many of the first layers, and of the last, keep 8 bits, in columns: where a model is hurt most.
        reduce_range: columns use 7 of their 8 bits. On processors without VNNI their products are faster then, and weights
            need not be converted when a graph is opened; nothing to `int4` blocks, and coarser only than 8 bits. Unless
            set, as the precision needs it: `int4` does, `int8` does not.
        rotate: spread the few large channels of activations over all, where that can be done exactly, see `graph.rotation`;
            unless set, yes.
    """

    bits: int = 4
    block_size: int = 32
    symmetric: bool = True
    method: Method = "gptq"
    head_bits: int = 8
    edge_layers: int = 0
    reduce_range: bool | None = None
    rotate: bool | None = None


@dataclass(slots=True)
class Weights:
    """The float weights of a graph that are quantized: found once, stored as each graph wants them.

    Attributes:
        origins: of each by name, as the manifest records them.
        head: name of the weight that makes the logits, if it is among them.
        tables: tables of embeddings that are not the head's weights: what each consists of; `floats` has them `[hidden,
            vocab_size]`.
        calibrated: whole parameters, rotated or not, that were quantized by their inputs, by the names in `origins`.
    """

    floats: dict[str, NDArray[np.float32]]  # [K, N]
    origins: dict[str, tuple[str, ...]]
    head: str | None
    tables: dict[str, tuple[str, ...]] = field(default_factory=dict)
    calibrated: dict[str, BlockWeights] = field(default_factory=dict)
    _stored: dict[tuple[str, str], Arrays] = field(default_factory=dict)

    @classmethod
    def find(cls, model: ir.Model, origins: Origins) -> Weights:
        """All weights of MatMuls that are worth it and known to the model."""
        floats, known, head = {}, {}, None
        found_products = products(model)
        for node in found_products:
            value = node.inputs[1]
            array = array_of(value)
            if value is None or array is None or min(array.shape) < _LEAST_WIDTH or chooses(node):
                continue
            name = str(value.name)
            if name not in floats and (parts := origins.of(name, array)) is not None:
                if len(parts) == 1 and parts[0] not in model.graph.initializers:
                    name = value.name = parts[0]  # the tracer numbered it
                floats[name], known[name] = array, parts
            if node is found_products[-1] and name in floats:
                head = name
        found = cls(floats, known, head)
        for node in lookups(model):
            table = array_of(node.inputs[0])
            name = str(node.inputs[0].name) if node.inputs[0] is not None else ""
            parts = None if table is None else origins.of(name, table)
            if table is not None and parts is not None and not found.is_head(table):
                found.tables[name], found.floats[name] = parts, table.T
        return found

    def is_head(self, table: NDArray[np.float32]) -> bool:
        """Whether a table of embeddings `[vocab_size, hidden]` is the head's weights."""
        if self.head is None:
            return False
        head = self.floats[self.head]  # [hidden, vocab_size]
        return table.shape == head.shape[::-1] and np.array_equal(table.T, head)

    def at_edges(self, layers: int) -> set[str]:
        """Names of the weights in so many of the first layers, and of the last."""
        numbers = {name: _layer(parts[0]) for name, parts in self.origins.items()}
        last = max((number for number in numbers.values() if number is not None), default=0)
        return {name for name, n in numbers.items() if n is not None and (n < layers or n > last - layers)}

    def block_size(self, name: str, how: Quantization) -> int:
        """Inputs that share a scale: no more than there are, and whole blocks where an embedding may be looked up in them."""
        columns = len(self.floats[name])
        size = fitting_block(columns, how)
        while size > _LEAST_BLOCK and name == self.head and columns % size:
            size //= 2
        return size

    def calibrate(self, how: Quantization, origins: Origins, calibrate: Calibrate) -> int:
        """Quantize by their inputs what goes into blocks. Returns the number of weights of which all parts could be."""
        left_out = self.at_edges(how.edge_layers) | {self.head}
        sought = [pieces for name, pieces in self.origins.items() if name not in left_out]
        wanted = {
            base: origins.rotations.get(base, Rotated(parameter=base))
            for pieces in sought
            for base in map(_base, pieces)
        }

        def quantize(weight: NDArray[np.float32], moments: NDArray[np.float64]) -> BlockWeights:
            size = fitting_block(weight.shape[1], how)
            return quantize_compensating(weight, moments, bits=how.bits, block_size=size, symmetric=how.symmetric)

        self.calibrated = calibrate(wanted, quantize)
        return sum(all(_base(piece) in self.calibrated for piece in pieces) for pieces in sought)

    def blocks(self, name: str, bits: int, how: Quantization) -> Arrays:
        """`q4` or `q8`, `scales` and, if there are any, `zero_points`, as MatMulNBits takes them."""
        size, pieces = self.block_size(name, how), self.origins.get(name, ())
        known = [self._piece(piece) for piece in pieces if _base(piece) in self.calibrated]
        if known and len(known) == len(pieces):
            return self._once(name, f"q{bits}", lambda _: _arrays(side_by_side(known)))
        return self._once(name, f"q{bits}", lambda floats: _blocks(floats, bits, size, how))

    def _piece(self, piece: str) -> BlockWeights:
        """`name` or `name[first:last]` of what was calibrated."""
        whole, part = self.calibrated[_base(piece)], piece.partition("[")[2].rstrip("]")
        first, last = map(int, part.split(":")) if part else (0, whole.out_features)
        return whole.rows(first, last)

    def columns(self, name: str, how: Quantization) -> Arrays:
        """`q8` `[N, K]` and `column_scales` `[N]`."""
        return self._once(name, "columns", lambda floats: _columns(floats, how))

    def _once(self, name: str, kind: str, make: Callable[[NDArray[np.float32]], Arrays]) -> Arrays:
        """A weight's arrays in one form; made once, so that graphs can share them."""
        key = (name, kind)
        if key not in self._stored:
            self._stored[key] = make(self.floats[name])
        return self._stored[key]


def fitting_block(columns: int, how: Quantization) -> int:
    """Inputs that share a scale: no more than there are."""
    size = how.block_size
    while size > max(_LEAST_BLOCK, columns):
        size //= 2
    return size


def _base(piece: str) -> str:
    """The name in a piece of a weight."""
    return piece.partition("[")[0]


def _layer(parameter: str) -> int | None:
    """The number of a parameter's layer: the first number among the parts of its name."""
    return next((int(part) for part in parameter.split(".") if part.isdecimal()), None)


def products(model: ir.Model) -> list[ir.Node]:
    """The graph's products of two matrices, in their order."""
    return [node for node in model.graph if node.op_type == "MatMul"]


def weight_name(node: ir.Node) -> str:
    """Of a product's second matrix."""
    value = node.inputs[1]
    return "" if value is None else str(value.name)


def lookups(model: ir.Model) -> list[ir.Node]:
    """The nodes that look tokens up in a table of floats."""
    found = []
    for node in model.graph:
        table = array_of(node.inputs[0]) if node.op_type == "Gather" else None
        if table is not None and table.ndim == 2 and table.dtype == np.float32 and min(table.shape) >= _LEAST_WIDTH:
            found.append(node)
    return found


def _blocks(floats: NDArray[np.float32], bits: int, size: int, how: Quantization) -> Arrays:
    method: Literal["rtn", "search"] = "rtn" if how.method == "rtn" else "search"
    weight = np.ascontiguousarray(floats.T)
    return _arrays(quantize_blocks(weight, bits=bits, block_size=size, symmetric=how.symmetric, method=method))


def _arrays(made: BlockWeights) -> Arrays:
    arrays: Arrays = {f"q{made.bits}": made.packed, "scales": made.scales}
    if made.zero_points is not None:
        arrays["zero_points"] = made.zero_points
    return arrays


def _columns(floats: NDArray[np.float32], how: Quantization) -> Arrays:
    made = quantize_columns(np.ascontiguousarray(floats.T), reduce_range=bool(how.reduce_range))
    return {"q8": np.ascontiguousarray(made.values.T), "column_scales": made.scales}

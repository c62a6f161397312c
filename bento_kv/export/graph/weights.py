"""The weights of a graph that are quantized: which, how, and as which arrays each graph stores them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bento_kv.export.graph.nodes import array_of, chooses
from bento_kv.export.graph.origins import Origins
from bento_kv.export.quantize import Method, quantize_blocks, quantize_columns

_LEAST_WIDTH = 32
_LEAST_BLOCK = 16
COLUMN_BITS = 8

Arrays = dict[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """How weights are stored.

    Attributes:
        bits: of the layers' weights, 4 or 8.
        block_size: inputs that share a scale.
        symmetric: without zero points.
        method: see `export.quantize`.
        head_bits: of the weights that make the logits, and of the embedding where they are tied: 8, in columns, or 4, in
            blocks.
        edge_layers: so many of the first layers, and of the last, keep 8 bits, in columns: where a model is hurt most.
        reduce_range: columns use 7 of their 8 bits. On processors without VNNI their products are faster then, and weights
            need not be converted when a graph is opened; nothing to `int4` blocks, and coarser only than 8 bits. Unless
            set, as the precision needs it: `int4` does, `int8` does not.
        rotate: spread the few large channels of activations over all, see `graph.rotation`; unless set, `int8` does, whose
            activations share a scale a token, and `int4` does not, whose activations have a scale a block.
    """

    bits: int = 4
    block_size: int = 128
    symmetric: bool = True
    method: Method = "search"
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
    """

    floats: dict[str, NDArray[np.float32]]  # [K, N]
    origins: dict[str, tuple[str, ...]]
    head: str | None
    tables: dict[str, tuple[str, ...]] = field(default_factory=dict)
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
        size = how.block_size
        while size > _LEAST_BLOCK and (size > columns or (name == self.head and columns % size)):
            size //= 2
        return size

    def blocks(self, name: str, bits: int, how: Quantization) -> Arrays:
        """`q4` or `q8`, `scales` and, if there are any, `zero_points`, as MatMulNBits takes them."""
        size = self.block_size(name, how)
        return self._once(name, f"q{bits}", lambda floats: _blocks(floats, bits, size, how))

    def columns(self, name: str, how: Quantization) -> Arrays:
        """`q8` `[N, K]` and `column_scales` `[N]`."""
        return self._once(name, "columns", lambda floats: _columns(floats, how))

    def _once(self, name: str, kind: str, make: Callable[[NDArray[np.float32]], Arrays]) -> Arrays:
        """A weight's arrays in one form; made once, so that graphs can share them."""
        key = (name, kind)
        if key not in self._stored:
            self._stored[key] = make(self.floats[name])
        return self._stored[key]


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
    made = quantize_blocks(
        np.ascontiguousarray(floats.T), bits=bits, block_size=size, symmetric=how.symmetric, method=how.method
    )
    arrays: Arrays = {f"q{bits}": made.packed, "scales": made.scales}
    if made.zero_points is not None:
        arrays["zero_points"] = made.zero_points
    return arrays


def _columns(floats: NDArray[np.float32], how: Quantization) -> Arrays:
    made = quantize_columns(np.ascontiguousarray(floats.T), reduce_range=bool(how.reduce_range))
    return {"q8": np.ascontiguousarray(made.values.T), "column_scales": made.scales}

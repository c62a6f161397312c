"""Graphs with quantized weights: each float MatMul of constant weights is replaced, and nothing else changes.

Two kinds of arithmetic. *Blocks*: weights of 4 or 8 bits with a scale for each block of inputs (com.microsoft
MatMulNBits, int8 activations by block), which reads the fewest bytes for few tokens. *Columns*: int8 weights with a scale
for each output and uint8 activations with a scale for each token (MatMulInteger), which computes fastest for many. Both
give a token the same bits whatever tokens share the step: no scale is shared between tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bento_kv.export.graph.nodes import array_of, chooses, constant, only_user, stand_in
from bento_kv.export.graph.origins import Origins
from bento_kv.export.quantize import Method, quantize_blocks, quantize_columns

_LEAST_WIDTH = 32
_LEAST_BLOCK = 16
INT8_ACTIVATIONS = 4  # MatMulNBits' accuracy_level
COLUMN_BITS = 8


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
    _stored: dict[tuple[str, str], dict[str, NDArray[np.generic]]] = field(default_factory=dict)

    @classmethod
    def find(cls, model: ir.Model, origins: Origins) -> Weights:
        """All weights of MatMuls that are worth it and known to the model."""
        floats, known, head = {}, {}, None
        last = _last_matmul(model)
        for node in _matmuls(model):
            value = node.inputs[1]
            array = array_of(value)
            if value is None or array is None or min(array.shape) < _LEAST_WIDTH or chooses(node):
                continue
            name = str(value.name)
            if name not in floats and (parts := origins.of(name, array)) is not None:
                if len(parts) == 1 and parts[0] not in model.graph.initializers:
                    name = value.name = parts[0]  # the tracer numbered it
                floats[name], known[name] = array, parts
            if node is last and name in floats:
                head = name
        found = cls(floats, known, head)
        for node in _lookups(model):
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

    def stored(
        self, name: str, kind: str, make: Callable[[NDArray[np.float32]], dict[str, NDArray[np.generic]]]
    ) -> dict[str, NDArray[np.generic]]:
        """A weight's arrays in one form; made once, so that graphs can share them."""
        key = (name, kind)
        if key not in self._stored:
            self._stored[key] = make(self.floats[name])
        return self._stored[key]


def _layer(parameter: str) -> int | None:
    """The number of a parameter's layer: the first number among the parts of its name."""
    return next((int(part) for part in parameter.split(".") if part.isdecimal()), None)


def use_blocks(model: ir.Model, weights: Weights, how: Quantization) -> None:
    """Blocks for every weight; the head, and layers at the edges, as it is asked for."""
    tokens = _Tokens(model)
    edges = weights.at_edges(how.edge_layers)
    for node in _matmuls(model):
        name = _name(node)
        if name == weights.head:
            _head(model, node, weights, how, tokens)
        elif name in edges:
            _column_matmul(model, node, weights, how, tokens)
        elif name in weights.floats:
            _block_matmul(model, node, weights, how, how.bits)
    _embed(model, weights, how)


def use_columns(model: ir.Model, weights: Weights, how: Quantization) -> None:
    """Columns for every weight; the head as it is asked for, so that graphs of both kinds can share it."""
    tokens = _Tokens(model)
    for node in _matmuls(model):
        name = _name(node)
        if name == weights.head:
            _head(model, node, weights, how, tokens)
        elif name in weights.floats:
            _column_matmul(model, node, weights, how, tokens)
    _embed(model, weights, how)


def _head(model: ir.Model, node: ir.Node, weights: Weights, how: Quantization, tokens: _Tokens) -> None:
    if how.head_bits == COLUMN_BITS:
        _column_matmul(model, node, weights, how, tokens)
    else:
        _block_matmul(model, node, weights, how, how.head_bits)


def _matmuls(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "MatMul"]


def _name(node: ir.Node) -> str:
    value = node.inputs[1]
    return "" if value is None else str(value.name)


def _last_matmul(model: ir.Model) -> ir.Node | None:
    nodes = _matmuls(model)
    return nodes[-1] if nodes else None


def _initializer(model: ir.Model, name: str, array: NDArray[np.generic]) -> ir.Value:
    return model.graph.initializers.get(name) or constant(model, name, array)


def _block_matmul(model: ir.Model, node: ir.Node, weights: Weights, how: Quantization, bits: int) -> None:
    name = _name(node)
    arrays = _stored_blocks(weights, name, bits, how)
    columns, outputs = weights.floats[name].shape
    inputs: list[ir.Value | None] = [node.inputs[0]]
    inputs += [_initializer(model, f"{name}.{part}", array) for part, array in arrays.items()]
    replaced = node
    add = only_user(node.outputs[0], "Add")
    bias = None if add is None else next((v for v in add.inputs if v is not None and v.const_value is not None), None)
    if add is not None and bias is not None and bias.shape is not None and list(bias.shape) == [outputs]:
        inputs += [None] * (5 - len(inputs)) + [bias]
        replaced = add
    settings = {"K": columns, "N": outputs, "bits": bits, "block_size": _block_size(weights, name, how)}
    attributes = [ir.AttrInt64(key, value) for key, value in settings.items()]
    attributes.append(ir.AttrInt64("accuracy_level", INT8_ACTIVATIONS))
    product = ir.Node("com.microsoft", "MatMulNBits", inputs, attributes, name=f"{name}/MatMulNBits")
    stand_in(model, replaced, [product], [(replaced.outputs[0], product.outputs[0])])


def _block_size(weights: Weights, name: str, how: Quantization) -> int:
    """Inputs that share a scale: no more than there are, and whole blocks where an embedding may be looked up in them."""
    columns = len(weights.floats[name])
    size = how.block_size
    while size > _LEAST_BLOCK and (size > columns or (name == weights.head and columns % size)):
        size //= 2
    return size


def _stored_blocks(weights: Weights, name: str, bits: int, how: Quantization) -> dict[str, NDArray[np.generic]]:
    size = _block_size(weights, name, how)
    return weights.stored(name, f"q{bits}", lambda floats: _blocks(floats, bits, size, how))


def _blocks(floats: NDArray[np.float32], bits: int, size: int, how: Quantization) -> dict[str, NDArray[np.generic]]:
    made = quantize_blocks(
        np.ascontiguousarray(floats.T), bits=bits, block_size=size, symmetric=how.symmetric, method=how.method
    )
    arrays: dict[str, NDArray[np.generic]] = {f"q{bits}": made.packed, "scales": made.scales}
    if made.zero_points is not None:
        arrays["zero_points"] = made.zero_points
    return arrays


def _column_matmul(model: ir.Model, node: ir.Node, weights: Weights, how: Quantization, tokens: _Tokens) -> None:
    name, x = _name(node), node.inputs[0]
    assert x is not None
    values, scales = tokens.quantized(x, node)
    arrays = _stored_columns(weights, name, how)
    weight, column_scales = (_initializer(model, f"{name}.{part}", array) for part, array in arrays.items())
    # Stored by output, as an embedding needs it; the runtime turns it round once, when it loads the graph.
    turned = ir.node("Transpose", [weight], {"perm": [1, 0]}, name=f"{name}/Transpose")
    product = ir.Node(
        "com.microsoft",
        "MatMulIntegerToFloat",
        [
            values,
            turned.outputs[0],
            _scalar(model, "one", np.float32(1)),
            column_scales,
            _scalar(model, "zero", np.uint8(128)),
        ],
        name=f"{name}/MatMulInteger",
    )
    scaled = ir.node("Mul", [product.outputs[0], scales], name=f"{name}/scale")
    stand_in(model, node, [turned, product, scaled], [(node.outputs[0], scaled.outputs[0])])


def _stored_columns(weights: Weights, name: str, how: Quantization) -> dict[str, NDArray[np.generic]]:
    return weights.stored(name, "columns", lambda floats: _columns(floats, how))


def _columns(floats: NDArray[np.float32], how: Quantization) -> dict[str, NDArray[np.generic]]:
    made = quantize_columns(np.ascontiguousarray(floats.T), reduce_range=bool(how.reduce_range))
    return {"q8": np.ascontiguousarray(made.values.T), "column_scales": made.scales}


class _Tokens:
    """Activations of a graph as uint8, each made once, whatever number of weights it meets."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._quantized: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
        self._zeros: dict[str, ir.Value] = {}  # by how many tokens there are

    def quantized(self, x: ir.Value, before: ir.Node) -> tuple[ir.Value, ir.Value]:
        """x `[..., tokens, K]` as uint8 around 128, and each token's scale `[..., tokens, 1]`."""
        if x not in self._quantized:
            self._quantized[x] = self._quantize(x, before)
        return self._quantized[x]

    def _quantize(self, x: ir.Value, before: ir.Node) -> tuple[ir.Value, ir.Value]:
        model = self._model
        axes = _scalar(model, "last_axis", np.array([-1], np.int64))
        flat = _scalar(model, "flat", np.array([-1], np.int64))
        sizes = ir.node("Abs", [x], name=f"{x.name}/sizes")
        largest = ir.node("ReduceMax", [sizes.outputs[0], axes], {"keepdims": 1}, name=f"{x.name}/largest")
        # A token of zeros must not be divided by zero.
        least = _scalar(model, "least", np.float32(1e-20))
        magnitude = ir.node("Max", [largest.outputs[0], least], name=f"{x.name}/magnitude")
        step = _scalar(model, "step", np.float32(1 / 127))
        scale = ir.node("Mul", [magnitude.outputs[0], step], name=f"{x.name}/scale")
        vector = ir.node("Reshape", [scale.outputs[0], flat], name=f"{x.name}/scales")
        model.graph.insert_before(before, [sizes, largest, magnitude, scale, vector])
        zeros = self._zero_points(x, vector.outputs[0], before)
        values = ir.node("QuantizeLinear", [x, vector.outputs[0], zeros], {"axis": -2}, name=f"{x.name}/quantized")
        model.graph.insert_before(before, values)
        return values.outputs[0], scale.outputs[0]

    def _zero_points(self, x: ir.Value, scales: ir.Value, before: ir.Node) -> ir.Value:
        """128 for each token, shared by all activations that are known to be of as many tokens."""
        counts = [dim for dim in (x.shape or [])[:-1] if dim != 1]
        tokens = counts[0] if len(counts) == 1 else None
        named = isinstance(tokens, ir.SymbolicDim) and tokens.value is not None
        known = str(tokens) if named else f"of {x.name}"
        if known not in self._zeros:
            shape = ir.node("Shape", [scales], name=f"{x.name}/shape")
            zero = _scalar(self._model, "zero", np.uint8(128))
            zeros = ir.node("Expand", [zero, shape.outputs[0]], name=f"{x.name}/zeros")
            self._model.graph.insert_before(before, [shape, zeros])
            self._zeros[known] = zeros.outputs[0]
        return self._zeros[known]


def _scalar(model: ir.Model, name: str, value: NDArray[np.generic] | np.generic) -> ir.Value:
    return _initializer(model, f"quantization.{name}", np.asarray(value))


def _embed(model: ir.Model, weights: Weights, how: Quantization) -> None:
    """Look tokens up in the head's own weights, where they are tied."""
    if how.head_bits == COLUMN_BITS:
        _embed_from_columns(model, weights, how)
    else:
        _embed_from_blocks(model, weights, how)


def _lookups(model: ir.Model) -> list[ir.Node]:
    """The nodes that look tokens up in a table of floats."""
    found = []
    for node in model.graph:
        table = array_of(node.inputs[0]) if node.op_type == "Gather" else None
        if table is not None and table.ndim == 2 and table.dtype == np.float32 and min(table.shape) >= _LEAST_WIDTH:
            found.append(node)
    return found


def _embeddings(model: ir.Model, weights: Weights) -> list[tuple[ir.Node, str]]:
    """The nodes that look tokens up, with the weight that they look in: the head, where they are tied, or a table."""
    found = []
    for node in _lookups(model):
        table, value = array_of(node.inputs[0]), node.inputs[0]
        assert table is not None
        assert value is not None
        if weights.is_head(table):
            found.append((node, str(weights.head)))
        elif value.name in weights.tables:
            found.append((node, str(value.name)))
    return found


def _embed_from_blocks(model: ir.Model, weights: Weights, how: Quantization) -> None:
    """Look tokens up in the head's blocks (com.microsoft GatherBlockQuantized), unless they do not fill their rows."""
    for node, name in _embeddings(model, weights):
        if name != weights.head:
            continue
        size = _block_size(weights, name, how)
        if len(weights.floats[name]) % size:
            return
        arrays = _stored_blocks(weights, name, how.head_bits, how)
        packed = arrays[f"q{how.head_bits}"]
        inputs: list[ir.Value | None] = [
            # The same bytes as the head's, without its axis of blocks.
            _initializer(model, f"{name}.rows", packed.reshape(len(packed), -1)),
            node.inputs[1],
            _initializer(model, f"{name}.scales", arrays["scales"]),
        ]
        if "zero_points" in arrays:
            inputs.append(_initializer(model, f"{name}.zero_points", arrays["zero_points"]))
        settings = {
            "bits": how.head_bits,
            "block_size": size,
            "gather_axis": 0,
            "quantize_axis": 1,
        }
        attributes = [ir.AttrInt64(key, value) for key, value in settings.items()]
        rows = ir.Node("com.microsoft", "GatherBlockQuantized", inputs, attributes, name=f"{name}/embedding")
        stand_in(model, node, [rows], [(node.outputs[0], rows.outputs[0])])


def _embed_from_columns(model: ir.Model, weights: Weights, how: Quantization) -> None:
    """Look tokens up in int8 weights, the head's where they are tied, and scale them."""
    for node, name in _embeddings(model, weights):
        if name in weights.tables:
            weights.origins[name] = weights.tables[name]
        arrays = _stored_columns(weights, name, how)
        values, scales = (_initializer(model, f"{name}.{part}", array) for part, array in arrays.items())
        rows = ir.node("Gather", [values, node.inputs[1]], {"axis": 0}, name=f"{name}/rows")
        floats = ir.node("Cast", [rows.outputs[0]], {"to": ir.DataType.FLOAT}, name=f"{name}/floats")
        own = ir.node("Gather", [scales, node.inputs[1]], {"axis": 0}, name=f"{name}/row_scales")
        wide = ir.node(
            "Unsqueeze", [own.outputs[0], _scalar(model, "last_axis", np.array([-1], np.int64))], name=f"{name}/wide"
        )
        scaled = ir.node("Mul", [floats.outputs[0], wide.outputs[0]], name=f"{name}/embedding")
        stand_in(model, node, [rows, floats, own, wide, scaled], [(node.outputs[0], scaled.outputs[0])])

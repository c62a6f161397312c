"""Rotation of the residual stream, and of what else goes into products, by the graph's structure.

What the weights are turned by is in `contract.rotation`; here is where it may be done. The residual stream is what the
additions around the layers carry. It can be rotated if everything that writes it is a product with constant weights or
a table of embeddings, and everything that reads it is a root-mean-square norm in front of such products. Norms behind a
part (gemma 2, olmo 2), norms that subtract a mean, and experts stand in the way; then nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bento_kv.contract.rotation import Rotated, rotation
from bento_kv.export.graph.nodes import array_of, chooses, constant, stand_in
from bento_kv.export.graph.origins import Origins

# Largest and smallest size of the rotation in front of a product whose inputs nothing else spreads.
_LARGEST = 64
_SMALLEST = 16
_NORM = "RMSNormalization"
# Nodes that choose and move tokens; the features stay the last axis.
_MOVES = frozenset({"Transpose", "GatherND", "Unsqueeze", "Squeeze", "Reshape", "Identity"})


class _NotRotatable(Exception):
    """The stream goes through something that sees a rotation."""


@dataclass(slots=True)
class _Stream:
    """The residual stream: what writes and what reads it."""

    width: int
    values: set[ir.Value] = field(default_factory=set)
    tables: list[ir.Node] = field(default_factory=list)  # Gather
    products: list[ir.Node] = field(default_factory=list)  # MatMul
    biases: list[tuple[ir.Node, int]] = field(default_factory=list)  # Add, and which of its inputs
    norms: list[ir.Node] = field(default_factory=list)

    def follow(self, value: ir.Value) -> None:
        """Add a value, and all that it comes from and goes to.

        Raises:
            _NotRotatable: something is in the way.
        """
        pending = [value]
        while pending:
            each = pending.pop()
            if each in self.values:
                continue
            if each.is_graph_output() or _width(each) != self.width:
                raise _NotRotatable(f"{each.name} is not of the stream")
            self.values.add(each)
            pending += [*self._sources(each), *self._targets(each)]

    def _sources(self, value: ir.Value) -> Iterator[ir.Value]:
        node = value.producer()
        kind = None if node is None else node.op_type
        if node is None or kind not in ("Add", "Mul", "MatMul", "Gather"):
            raise _NotRotatable(f"{value.name} is made by {kind}")
        first, second = node.inputs[0], node.inputs[1]
        assert first is not None
        assert second is not None
        if kind == "MatMul":
            if second.const_value is None or len(second.const_value.shape) != 2:
                raise _NotRotatable(f"{value.name} is a product of activations")
            self.products.append(node)
        elif kind == "Gather":
            if array_of(first) is None:
                raise _NotRotatable(f"{value.name} is gathered from activations")
            self.tables.append(node)
        else:
            constants = [index for index, each in enumerate((first, second)) if each.const_value is not None]
            yield from (each for each in (first, second) if each.const_value is None)
            for index in constants:
                shape = list((first, second)[index].const_value.shape)  # type: ignore[union-attr]
                if kind == "Add" and shape == [self.width]:
                    self.biases.append((node, index))
                elif not (kind == "Mul" and all(size == 1 for size in shape)):
                    raise _NotRotatable(f"{value.name} has a constant of its own for each channel")

    def _targets(self, value: ir.Value) -> Iterator[ir.Value]:
        for usage in value.uses():
            node = usage.node
            if node.op_type in ("Add", "Mul"):
                yield node.outputs[0]
            elif node.op_type == _NORM and usage.idx == 0:
                self.norms.append(node)
            else:
                raise _NotRotatable(f"{value.name} is read by {node.op_type}")


def rotate_residual(model: ir.Model, origins: Origins) -> int:
    """Turn the residual stream, fold the gains of the norms that read it. Returns the products that were changed, 0 if none.

    What reads the weights afterwards finds in `origins` what they were made of.
    """
    table = next((n for n in model.graph if n.op_type == "Gather" and _is_table(n.inputs[0])), None)
    if table is None:
        return 0
    width = _width(table.outputs[0])
    if width is None:
        return 0
    stream = _Stream(width)
    try:
        stream.follow(table.outputs[0])
        readers = [(norm, list(_readers(norm.outputs[0], width))) for norm in stream.norms]
        if not {node for _, products in readers for node in products}.isdisjoint(stream.products):
            raise _NotRotatable("a product reads the stream and writes it")
        changes = _Changes(origins, width)
        for norm, products in readers:
            changes.fold(norm, products)
        for node in stream.products:
            changes.write(node)
        for node in stream.tables:
            changes.look_up(node)
        for node, index in stream.biases:
            changes.bias(node, index)
    except _NotRotatable:
        return 0
    changes.apply(model)
    for norm in stream.norms:
        norm.replace_input_with(1, _ones(model, width))
    return len(changes.weights)


def spread_inputs(model: ir.Model, origins: Origins) -> int:
    """Turn what products read that was not turned with the stream, in pieces of a power of two. Returns how many products.

    That is what attention and gates make; where the stream cannot be rotated, what norms make, too. The turn is a product
    of its own in the graph, small beside the one behind it, whose weights are turned likewise.
    """
    count = 0
    for node in list(model.graph):
        array, x = (array_of(node.inputs[1]), node.inputs[0]) if node.op_type == "MatMul" else (None, None)
        weight = node.inputs[1] if array is not None and array.ndim == 2 else None
        if array is None or x is None or weight is None or chooses(node):
            continue
        origin = origins.rotated(str(weight.name), array)
        size = min(_LARGEST, len(array) & -len(array))
        if (
            origin is None
            or origin.inputs
            or size < _SMALLEST
            or x.shape is None
            or list(x.shape)[:-2] not in ([], [1])
        ):
            continue
        how = origin.model_copy(update={"inputs": size})
        turned = _turned(array, inputs=size)
        new = constant(model, f"{weight.name}.spread", turned)
        origins.know(str(new.name), turned, how)
        replaced = ir.node("MatMul", [_spread(model, node, x, size), new], name=str(node.name))
        stand_in(model, node, [replaced], [(node.outputs[0], replaced.outputs[0])])
        count += 1
    return count


def _spread(model: ir.Model, before: ir.Node, x: ir.Value, size: int) -> ir.Value:
    """x `[..., K]` turned in pieces, by nodes in front of another; what several products read is merged later."""
    width = _width(x)
    assert width is not None
    assert x.shape is not None
    pieces = _shape(model, "pieces", [-1, width // size, size])
    whole = _shape(model, "whole", [*[1] * (len(x.shape) - 2), -1, width])
    name = f"rotation.{size}"
    matrix = model.graph.initializers.get(name) or constant(model, name, rotation(size).astype(np.float32))
    cut = ir.node("Reshape", [x, pieces], name=f"{x.name}/pieces")
    product = ir.node("MatMul", [cut.outputs[0], matrix], name=f"{x.name}/spread")
    joined = ir.node("Reshape", [product.outputs[0], whole], name=f"{x.name}/spread_whole")
    joined.outputs[0].shape = x.shape
    if x.dtype is not None:
        joined.outputs[0].dtype = x.dtype
    model.graph.insert_before(before, [cut, product, joined])
    return joined.outputs[0]


@dataclass(slots=True)
class _Changes:
    """New weights by the input that they replace; nothing is changed until all are known."""

    origins: Origins
    width: int
    weights: list[tuple[ir.Node, int, NDArray[np.float32], str, Rotated | None]] = field(default_factory=list)

    def fold(self, norm: ir.Node, products: list[ir.Node]) -> None:
        """The gain of a norm, and the turn back, into the products that read it."""
        gain = array_of(norm.inputs[1])
        found = None if gain is None else self.origins.gain(gain)
        if gain is None or gain.shape != (self.width,) or found is None:
            raise _NotRotatable(f"the gain of {norm.name} is not known")
        name, offset = found
        for node in products:
            weight, origin = self._weight(node, 1)
            how = origin.model_copy(update={"gain": name, "gain_offset": offset, "inputs": self.width})
            self.weights.append((node, 1, _turned(weight * gain[:, None], inputs=self.width), "read", how))

    def write(self, node: ir.Node) -> None:
        """The turn behind a product that writes."""
        weight, origin = self._weight(node, 1)
        how = origin.model_copy(update={"outputs": self.width})
        self.weights.append((node, 1, _turned(weight, outputs=self.width), "written", how))

    def look_up(self, node: ir.Node) -> None:
        """The turn of a table's rows."""
        table, origin = self._weight(node, 0)
        how = origin.model_copy(update={"inputs": self.width})
        self.weights.append((node, 0, np.ascontiguousarray(_turned(table, outputs=self.width)), "rows", how))

    def bias(self, node: ir.Node, index: int) -> None:
        """The turn of what is added."""
        array = array_of(node.inputs[index])
        assert array is not None
        self.weights.append((node, index, _turned(array[None], outputs=self.width)[0], "written", None))

    def _weight(self, node: ir.Node, index: int) -> tuple[NDArray[np.float32], Rotated]:
        value = node.inputs[index]
        array = array_of(value)
        origin = None if array is None else self.origins.rotated(str(value.name if value else ""), array)
        if array is None or origin is None:
            raise _NotRotatable(f"what {node.name} multiplies by is not a parameter")
        return array, origin

    def apply(self, model: ir.Model) -> None:
        """Let the nodes read the new weights."""
        for node, index, array, what, how in self.weights:
            old = node.inputs[index]
            assert old is not None
            name = f"{old.name if how is None else how.parameter}.{what}"
            # One parameter may be read behind several norms, whose gains differ.
            while (known := array_of(model.graph.initializers.get(name))) is not None and not np.array_equal(
                known, array
            ):
                name += ".again"
            value = model.graph.initializers.get(name) or constant(model, name, array)
            if how is not None:
                self.origins.know(name, array, how)
            node.replace_input_with(index, value)


def _readers(value: ir.Value, width: int) -> Iterator[ir.Node]:
    """The products that read a norm's output, tokens chosen or moved between."""
    for usage in value.uses():
        node = usage.node
        if node.op_type == "MatMul" and usage.idx == 0 and array_of(node.inputs[1]) is not None:
            yield node
        elif node.op_type in _MOVES and usage.idx == 0 and _width(node.outputs[0]) == width:
            yield from _readers(node.outputs[0], width)
        else:
            raise _NotRotatable(f"{value.name} is read by {node.op_type}")


def _turned(weight: NDArray[np.float32], *, inputs: int = 0, outputs: int = 0) -> NDArray[np.float32]:
    """A weight `[K, N]` of the graph, turned."""
    return Rotated(parameter="", inputs=inputs, outputs=outputs).apply(weight.T, None).T


def _is_table(value: ir.Value | None) -> bool:
    array = array_of(value)
    return array is not None and array.ndim == 2 and array.dtype == np.float32


def _width(value: ir.Value) -> int | None:
    size = None if value.shape is None or not len(value.shape) else value.shape[-1]
    return size if isinstance(size, int) else None


def _ones(model: ir.Model, width: int) -> ir.Value:
    name = f"ones.{width}"
    return model.graph.initializers.get(name) or constant(model, name, np.ones(width, np.float32))


def _shape(model: ir.Model, what: str, sizes: list[int]) -> ir.Value:
    name = f"rotation.{what}.{'x'.join(map(str, sizes))}"
    return model.graph.initializers.get(name) or constant(model, name, np.array(sizes, np.int64))

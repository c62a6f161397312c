"""Another interface around a graph: names, types, order of axes, keys and values stacked or not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from bento_kv.contract.graph_io import TensorSpec
from bento_kv.errors import ExportError, first_line
from bento_kv.repair.interface import dtype_of, interface_of, rename
from bento_kv.repair.records import Change
from bento_kv.repair.weights import check
from bento_kv.runtime.interface import Interface
from bento_kv.runtime.pairing import Axis, CachePair

_STANDARD: tuple[Axis, ...] = ("rows", "heads", "time", "dim")


def adapt(model: ir.Model, interface: Interface) -> list[Change]:
    """Put the names, types and order of axes of an interface around a model of the common one, in place.

    Raises:
        ExportError: they do not fit around it.
    """
    own = interface_of(model)
    kept = _fits(own, interface)
    around = _Around(model)
    for mine, theirs in ((own.ids, interface.ids), (own.mask, interface.mask), (own.positions, interface.positions)):
        if mine is not None:
            around.take([mine], theirs or mine)
    around.give([own.logits], interface.logits)
    for pair in interface.caches if kept else own.caches:
        sides = [p for p in own.caches if p.layer == pair.layer and pair.side in (p.side, "both")]
        if pair.past is not None and pair.present is not None:
            around.take([side.past for side in sides if side.past is not None], pair.past, pair.axes)
            around.give([side.present for side in sides if side.present is not None], pair.present, pair.axes)
    around.close()
    try:
        check(model)
    except Exception as error:  # a class that onnx does not export
        raise ExportError(
            f"the old inputs and outputs do not fit around the new export: {first_line(error)}"
        ) from error
    return [
        Change("dynamic-axis-baked", "all axes", "exported anew: batch, sequence and past vary"),
        *_differences(own, interface),
    ]


def _fits(own: Interface, interface: Interface) -> bool:
    """Whether the cache can be taken and given as it was."""
    return _is_whole(own, interface) and all(sorted(_unstacked(p)) == sorted(_STANDARD) for p in interface.caches)


def _is_whole(own: Interface, interface: Interface) -> bool:
    return interface.layers == own.layers and all(pair.past and pair.present for pair in interface.caches)


def _unstacked(pair: CachePair) -> list[Axis]:
    return [axis for axis in pair.axes if axis != "stack"]


def _differences(own: Interface, interface: Interface) -> Iterator[Change]:
    """What a loop that fed the old inputs has to know."""
    for mine, theirs in ((own.mask, interface.mask), (own.positions, interface.positions)):
        if theirs is not None and mine is None:
            yield Change("names", theirs.name, "is no input any more: the new export needs none")
    if interface.write is not None:
        yield Change("names", interface.write.name, "is no input any more: a past has its length")
    if interface.keep is not None:
        yield Change("names", interface.keep.name, "is no input any more: every token's logits are given")
    for zero in interface.zeros:
        yield Change("names", zero.name, "is no input any more: it was always zeros")
    if interface.mask is not None and len(interface.mask.shape) != 2:
        yield Change("names", interface.mask.name, "is [batch, past + sequence] of 0 and 1 now")
    ends = [interface.logits, *(spec for pair in interface.caches for spec in (pair.past, pair.present))]
    brief = [spec.name for spec in ends if spec is not None and spec.dtype == "bfloat16"]
    if brief:
        more = f" and {len(brief) - 1} more" if len(brief) > 1 else ""
        text = "float instead of bfloat16, which the runtime's CPU provider does not compute in and numpy does not have"
        yield Change("load-failed", f"{brief[0]}{more}", text)
    if not _is_whole(own, interface):
        yield Change("no-cache-io", "the cache", "has the common names: past_key_values.N.key, present.N.key, ...")
    elif not _fits(own, interface):
        text = "the old order of its axes is not kept: [batch, heads, time, dim] by layer and side"
        yield Change("names", "the cache", text)


class _Around:
    """Nodes before and behind a graph, and the inputs and outputs that it has with them, in the order of the calls."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._ends = {value.name: value for value in [*model.graph.inputs, *model.graph.outputs]}
        self._head: list[ir.Node] = []
        self._tail: list[ir.Node] = []
        self._inputs: list[ir.Value] = []
        self._outputs: list[ir.Value] = []
        self._names: dict[ir.Value, str] = {}

    def take(self, mine: Sequence[TensorSpec], theirs: TensorSpec, axes: Sequence[Axis] = _STANDARD) -> None:
        """An input in the place of one, or of those that it stacks."""
        places = [self._ends[spec.name] for spec in mine]
        fed = ir.Value()
        _declare(fed, places, theirs, axes)
        cast = _cast(self._head, fed, places[0].dtype)
        for side, place in enumerate(places):
            value = cast
            if "stack" in axes:
                index = _add(self._head, "Constant", [], value_int=side)
                value = _add(self._head, "Gather", [value, index], axis=axes.index("stack"))
            order: list[Axis] = [axis for axis in axes if axis != "stack"]
            value = _transposed(self._head, value, [order.index(axis) for axis in _STANDARD])
            ir.convenience.replace_all_uses_with(place, value)
        self._inputs.append(fed)
        self._names[fed] = theirs.name

    def give(self, mine: Sequence[TensorSpec], theirs: TensorSpec, axes: Sequence[Axis] = _STANDARD) -> None:
        """An output in the place of one, or of those that it stacks."""
        places = [self._ends[spec.name] for spec in mine]
        order = [_STANDARD.index(axis) for axis in axes if axis != "stack"]
        values = [_transposed(self._tail, place, order) for place in places]
        given = values[0]
        if "stack" in axes:
            stack = axes.index("stack")
            axis = _add(self._tail, "Constant", [], value_ints=[stack])
            given = _add(
                self._tail, "Concat", [_add(self._tail, "Unsqueeze", [value, axis]) for value in values], axis=stack
            )
        given = _cast(self._tail, given, _dtype(theirs, places[0]))
        _declare(given, places, theirs, axes)
        self._outputs.append(given)
        self._names[given] = theirs.name

    def close(self) -> None:
        """Put the nodes into the graph."""
        graph = self._model.graph
        graph.insert_before(graph[0], self._head)
        graph.extend(self._tail)
        for values, new in ((graph.inputs, self._inputs), (graph.outputs, self._outputs)):
            values.clear()
            values.extend(new)
        rename(self._model, self._names)


def _declare(value: ir.Value, places: Sequence[ir.Value], spec: TensorSpec, axes: Sequence[Axis]) -> None:
    """The shape of what it takes the place of, in another order of axes."""
    sizes = list(places[0].shape or ())
    if len(sizes) == len(_STANDARD):
        sizes = [len(places) if axis == "stack" else sizes[_STANDARD.index(axis)] for axis in axes]
    value.shape, value.dtype = ir.Shape(sizes), _dtype(spec, places[0])


def _dtype(spec: TensorSpec, place: ir.Value) -> ir.DataType:
    """As it was; but a mask of floats is added to scores, which this one is not, and nobody can feed bfloat16."""
    wanted, own = dtype_of(spec.dtype), place.dtype or ir.DataType.FLOAT
    keeps = wanted.is_integer() == own.is_integer() and wanted != ir.DataType.BFLOAT16
    return wanted if keeps else own


def _cast(nodes: list[ir.Node], value: ir.Value, dtype: ir.DataType | None) -> ir.Value:
    if dtype is None or value.dtype == dtype:
        return value
    result = _add(nodes, "Cast", [value], to=int(dtype))
    result.dtype = dtype
    return result


def _transposed(nodes: list[ir.Node], value: ir.Value, perm: list[int]) -> ir.Value:
    return value if perm == sorted(perm) else _add(nodes, "Transpose", [value], perm=perm)


def _add(nodes: list[ir.Node], operator: str, inputs: Sequence[ir.Value], **attributes: int | list[int]) -> ir.Value:
    """The output of a new node, of the type of its first input."""
    node = ir.node(operator, inputs, attributes)
    nodes.append(node)
    output = node.outputs[0]
    if inputs and inputs[0].dtype is not None:
        output.dtype = inputs[0].dtype
    return output

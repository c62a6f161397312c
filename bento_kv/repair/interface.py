"""What the inputs and outputs of a graph in memory are for, and other names for its values."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from bento_kv.contract.graph_io import TensorSpec
from bento_kv.runtime.interface import Interface, recognize


def interface_of(model: ir.Model) -> Interface:
    """The roles of a graph's inputs and outputs, as it declares them.

    Raises:
        DecoderError: it is not a causal decoder's graph.
    """
    fed = [value for value in model.graph.inputs if not value.is_initializer()]  # old files list weights among them
    return recognize([_spec(value) for value in fed], [_spec(value) for value in model.graph.outputs])


def _spec(value: ir.Value) -> TensorSpec:
    sizes = value.shape if value.shape is not None else ()
    shape = tuple(size if isinstance(size, int) else size.value or "?" for size in sizes)
    return TensorSpec(name=value.name or "", dtype=dtype_name(value.dtype), shape=shape)


def dtype_name(dtype: ir.DataType | None) -> str:
    """As the runtime calls it, in lower case."""
    return (dtype or ir.DataType.UNDEFINED).name.lower()


def dtype_of(name: str) -> ir.DataType:
    """The other way round."""
    return ir.DataType[name.upper()]


def rename(model: ir.Model, names: Mapping[ir.Value, str]) -> None:
    """Give values other names, which may be those of each other; what else has such a name makes way."""
    taken, chosen = set(names.values()), dict(names)
    for value in _values(model):
        if value.name in taken and value not in chosen:
            chosen[value] = f"{value.name}.inner"
    ir.convenience.rename_values(list(chosen), list(chosen.values()))


def rename_ends(model: ir.Model, names: Mapping[str, str]) -> None:
    """The same of inputs and outputs; new names by old ones."""
    ends = {value.name: value for value in [*model.graph.inputs, *model.graph.outputs]}
    rename(model, {ends[old]: new for old, new in names.items()})


def _values(model: ir.Model) -> list[ir.Value]:
    """Every value that has a name, of nested graphs too."""
    found: list[ir.Value] = []
    for graph in model.graphs():
        found += [*graph.inputs, *graph.initializers.values()]
        found += [value for node in graph for value in node.outputs]
    return found

"""Weights that lie in files beside the graph: found where they were moved to, and carried to where the graph goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from bento_kv.repair.records import Change

_SMALL = 256  # bytes; what is not larger goes into the graph, where shapes are inferred from it
_READ = 1024  # elements; what checks and conversions may need to read, such as axes


def external_values(model: ir.Model) -> Iterator[tuple[ir.Value, ir.ExternalTensor]]:
    """Weights whose numbers lie in another file."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value, value.const_value


def lift_external_constants(model: ir.Model) -> None:
    """Old exporters let constants of nodes lie outside too: make weights of them, so that there is one kind."""
    constants = (node.attributes.get("value") for node in model.graph.all_nodes() if node.op_type == "Constant")
    if any(constant is not None and isinstance(constant.value, ir.ExternalTensor) for constant in constants):
        LiftConstantsToInitializersPass(size_limit=0)(model)


def find_weights(model: ir.Model, file: Path) -> tuple[list[Change], list[Change]]:
    """Make sure that each file is there that the graph names: as it is named, or else in the same folder.

    Args:
        model: what was found under another name is linked anew in it.
        file: that it was read from.

    Returns:
        what was relinked; what is missing.
    """
    needed: dict[str, int] = {}
    for _, tensor in external_values(model):
        end = (tensor.offset or 0) + (tensor.length or 0)
        needed[str(tensor.location)] = max(needed.get(str(tensor.location), 0), end)
    relinked, missing = [], []
    for location, size in needed.items():
        path = file.parent / location
        if ".." in Path(location).parts or Path(location).is_absolute():
            missing.append(_outside(location))
            continue
        if path.is_file() and path.stat().st_size >= size:
            _link(model, location, path)
            continue
        others = [
            other
            for other in sorted(file.parent.iterdir())
            if other.is_file() and not other.samefile(file) and other.stat().st_size == size
        ]
        if len(others) == 1 and size:
            _link(model, location, others[0])
            relinked.append(
                Change(
                    "external-data-missing",
                    location,
                    f"the weights were found as {others[0].name}, which has exactly the {size} bytes that the graph "
                    f"asks of {location}",
                )
            )
        else:
            missing.append(_missing(location, size, path, others))
    return relinked, missing


def _link(model: ir.Model, location: str, path: Path) -> None:
    """Read the weights of a location from a path; through links, as model hubs keep their files."""
    real = path.resolve()
    for value, tensor in list(external_values(model)):
        if str(tensor.location) == location:
            value.const_value = ir.ExternalTensor(
                real.name,
                tensor.offset,
                tensor.length,
                tensor.dtype,
                shape=tensor.shape,
                name=tensor.name,
                base_dir=real.parent,
            )


def _missing(location: str, size: int, path: Path, others: Sequence[Path]) -> Change:
    state = f"is there with {path.stat().st_size} bytes only" if path.is_file() else "is not there"
    several = (
        f"; {', '.join(other.name for other in others)} have that size, and nothing tells which it is" if others else ""
    )
    return Change(
        "external-data-missing",
        location,
        f"the weights file {location} {state}: it has to lie at {path} with at least {size} bytes{several}. Copy it there "
        "from where the graph was exported; weights cannot be made up",
    )


def _outside(location: str) -> Change:
    """A graph that was not made here must not have any file of this machine copied into what is written."""
    return Change(
        "external-data-missing",
        location,
        f"the weights file {location} is said to lie outside the graph's folder, where the runtime reads none. Copy it "
        "beside the graph, under the name that the graph has for it",
    )


def carry_weights(model: ir.Model, data: Path) -> None:
    """Where any weights lie beside the graph, put all that are large into the file `data`, and let the model say so."""
    if any(external_values(model)):
        data.touch()  # what is replaced hands on its permissions; a new one would be its owner's alone
        ir.external_data.unload_from_model(model, data.parent, data.name, size_threshold_bytes=_SMALL)


def without_weights(model: ir.Model) -> tuple[ir.Model, dict[str, ir.TensorProtocol]]:
    """A copy for onnx's own functions, which copy what they are given and look for files: weights are inputs; and these."""
    light = model.clone()
    weights: dict[str, ir.TensorProtocol] = {}
    for name, value in list(light.graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and (isinstance(tensor, ir.ExternalTensor) or tensor.size > _READ):
            weights[name] = tensor
            value.shape, value.dtype = ir.Shape(tensor.shape.numpy()), tensor.dtype
            del light.graph.initializers[name]
            if not value.is_graph_input():
                light.graph.inputs.append(value)
    return light, weights


def check(model: ir.Model) -> None:
    """Whether nodes and types are what the operators' definitions ask for.

    Raises:
        Exception: they are not; of a class that onnx does not export.
    """
    onnx.checker.check_model(ir.to_proto(without_weights(model)[0]))

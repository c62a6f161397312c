"""Axes that are declared with a size: named, where the graph in truth takes others, which the doctor tells by running it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import onnx_ir as ir

from bento_kv.contract.graph_io import BATCH, PAST, PAST_AND_SEQUENCE, SEQUENCE
from bento_kv.doctor.records import Finding
from bento_kv.repair.interface import interface_of
from bento_kv.repair.records import Change
from bento_kv.runtime.interface import Interface

_ANEW = "A new export is needed: give the model as --reference"


class Axes:
    """Batch, sequence and past as a model's inputs and outputs declare them.

    Args:
        model: shapes are changed in place.

    Attributes:
        fixed: axes that are declared with a size, and the sizes.
    """

    def __init__(self, model: ir.Model) -> None:
        ends = {value.name: value for value in [*model.graph.inputs, *model.graph.outputs]}
        self._plans = [(ends[name], plan) for name, plan in _plans(interface_of(model))]
        inner = [value for graph in model.graphs() for node in graph for value in node.outputs]
        self._inner = [value for value in inner if value not in ends.values()]
        self._before = {value: value.shape for value in [*ends.values(), *self._inner]}
        self.fixed = self._sizes()

    def _sizes(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        totals = []
        for value, plan in self._plans:
            for axis, size in zip(plan, value.shape or (), strict=False):
                if axis == PAST_AND_SEQUENCE and isinstance(size, int):
                    totals.append(size)
                elif axis is not None and isinstance(size, int):
                    sizes.setdefault(axis, size)
        if totals and not {PAST, SEQUENCE} <= set(sizes):
            sizes.setdefault(PAST, totals[0] - sizes.get(SEQUENCE, 1))
        return sizes

    def free(self, kept: Collection[str] = ()) -> None:
        """Name all axes but some; what was inferred of shapes within is forgotten."""
        if not self.fixed:
            return
        for value in self._inner:
            value.shape = None
        for value, plan in self._plans:
            sizes = self._before[value]
            if sizes is not None:
                named = [
                    size if axis is None or _held(axis, kept) else axis for size, axis in zip(sizes, plan, strict=False)
                ]
                value.shape = ir.Shape([*named, *sizes[len(named) :]])

    def restore(self) -> None:
        """As they were declared."""
        for value, shape in self._before.items():
            value.shape = shape

    def changed(self) -> list[str]:
        """Names of inputs and outputs that have an axis named that had a size."""
        return [
            value.name or ""
            for value, _ in self._plans
            if any(isinstance(a, int) and not isinstance(b, int) for a, b in self._both(value))
        ]

    def _both(self, value: ir.Value) -> Iterator[tuple[object, object]]:
        return zip(self._before[value] or (), value.shape or (), strict=False)


def _held(axis: str, kept: Collection[str]) -> bool:
    return any(part in kept for part in axis.split(" + "))


def _plans(interface: Interface) -> Iterator[tuple[str, list[str | None]]]:
    """By name of an input or output, which axis each of its dimensions is."""
    yield interface.ids.name, [BATCH, SEQUENCE]
    if interface.mask is not None:
        plane: list[str | None] = [None, SEQUENCE] if len(interface.mask.shape) == 4 else []
        yield interface.mask.name, [BATCH, *plane, PAST_AND_SEQUENCE]
    if interface.positions is not None:
        yield interface.positions.name, [SEQUENCE] if len(interface.positions.shape) == 1 else [BATCH, SEQUENCE]
    last_only = interface.logits.shape[1:2] == (1,) and interface.ids.shape[1] != 1
    yield interface.logits.name, [BATCH, None if last_only or len(interface.logits.shape) == 2 else SEQUENCE]
    for pair in interface.caches:
        for spec, time in ((pair.past, PAST), (pair.present, PAST_AND_SEQUENCE if interface.has_past else SEQUENCE)):
            if spec is not None:
                names: dict[str, str] = {"rows": BATCH, "time": time}
                yield spec.name, [names.get(axis) for axis in pair.axes]


def name_axes(axes: Axes, examine: Callable[[], Sequence[Finding]]) -> tuple[list[Change], list[Change]]:
    """Name every declared size that the graph does not depend on; what was mended, what is still wrong.

    Args:
        axes: of the model; all that can be are named in the end.
        examine: writes the model as it is, and asks the doctor about it.

    Raises:
        DecoderError: as the doctor.
    """
    kept: dict[str, str] = {}  # and why
    while True:
        axes.free(kept)
        findings = examine()
        held: dict[str, str] = {}
        for finding in findings:
            for axis in _held_by(finding, axes.fixed.keys() - kept.keys()):
                held.setdefault(axis, finding.explain)
        if not held:
            break
        kept |= held
    left = [_stays(axis, axes.fixed[axis], why) for axis, why in kept.items()]
    declared = {("dynamic-axis-baked", axis) for axis in kept}
    left += [_left(finding) for finding in findings if (finding.id, finding.axis) not in declared]
    named = {axis: size for axis, size in axes.fixed.items() if axis not in kept}
    if not named:
        axes.restore()
        return [], left
    return [_named(named, axes.changed())], left


def _held_by(finding: Finding, free: Collection[str]) -> Collection[str]:
    """Axes, of those named now, that have to keep their size if this is found without it."""
    if finding.id == "zero-length-past-rejected":
        return ()
    if finding.id == "dynamic-axis-baked" and finding.axis is not None:
        return {finding.axis} & set(free)
    # Wrong numbers: with one row there is less that can be wrong, so that the batch is what is given up first.
    return {BATCH} & set(free) or free


def _named(named: dict[str, int], where: Sequence[str]) -> Change:
    sizes = ", ".join(f"{axis} (was {size})" for axis, size in named.items())
    more = f" and {len(where) - 3} more" if len(where) > 3 else ""
    return Change(
        "dynamic-axis-baked",
        ", ".join(where[:3]) + more,
        f"declared symbolic: {sizes}. The graph was run at several sizes of each",
    )


def _stays(axis: str, size: int, why: str) -> Change:
    return Change(
        "dynamic-axis-baked", f"{axis} = {size}", f"the {axis} axis stays at {size}. With it free: {why} {_ANEW}"
    )


def _left(finding: Finding) -> Change:
    return Change(finding.id, finding.where, f"{finding.explain} {_ANEW}")

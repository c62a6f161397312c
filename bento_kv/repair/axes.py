"""Axes that were baked: declared sizes made symbolic, and constants made sizes, as far as the graph survives it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from bento_kv.errors import BentoKVError
from bento_kv.onnx_file import nested_graphs
from bento_kv.repair.builder import Builder
from bento_kv.repair.files import write
from bento_kv.repair.names import interface_of
from bento_kv.repair.observe import observe, traced_sizes
from bento_kv.repair.records import Change
from bento_kv.repair.rewrite import Rewriter
from bento_kv.repair.trial import EVERYTHING, LATER, LOOP, NOT_EMPTY, Failure, Sizes, Subject, Use
from bento_kv.runtime.growing import FIRST
from bento_kv.runtime.interface import CachePair, Interface

AXES = ("batch", "sequence", "past")
_TOTAL = "past + sequence"


@dataclass(slots=True)
class Restored:
    """What became of a graph's axes."""

    model: onnx.ModelProto
    mended: list[Change]
    left: list[Change]


def restore_axes(model: onnx.ModelProto, file: Path, origin: Path) -> Restored:
    """Make batch, sequence and past vary where the graph survives it.

    Args:
        model: as read, of the versions that the runtime takes.
        file: where to write what is tried; its weights are there.
        origin: the file that the model was read from; others beside it tell more: config.json, the graph of step 0.
    """
    interface = interface_of(model)
    declared = declared_sizes(interface)
    uses = _uses(interface, origin)
    if not declared:
        write(model, file)
        if _survived(file, origin, {}, uses) is not None:
            return Restored(model, [], [])
    free = declare(model, interface, {})
    write(free, file)
    use = _survived(file, origin, {}, uses)
    if use is not None:
        return Restored(free, _declared_changes(model, free, declared, use), [])
    failure = _failure(file, origin, {}, EVERYTHING) or Failure(Sizes(1, 1, 0), "")
    traced = traced_sizes(model, file, origin, declared)
    if traced is None:
        return Restored(model, [], [_untold(failure)])
    seen = observe(free, traced, file, origin)
    candidates = [_Candidate(free, [])]
    for whole, slices in ((False, False), (True, False), (True, True)):  # from the surest to the boldest
        candidates.append(_rewrite(free, interface, traced, seen, whole=whole, slices=slices))
    return _most_that_holds(model, candidates, traced, declared, file, origin, uses)


def declared_sizes(interface: Interface) -> dict[str, int]:
    """Axes that inputs declare fixed, and the sizes."""
    found: dict[str, int] = {}

    def see(axis: str, size: int | str) -> None:
        if isinstance(size, int):
            found.setdefault(axis, size)

    see("batch", interface.ids.shape[0])
    see("sequence", interface.ids.shape[1])
    for pair in interface.caches:
        if pair.past is not None:
            for axis, name in (("rows", "batch"), ("time", "past")):
                if axis in pair.axes:
                    see(name, pair.past.shape[pair.axes.index(axis)])
    if interface.mask is not None:
        see("batch", interface.mask.shape[0])
        total = interface.mask.shape[-1]
        if isinstance(total, int) and not {"past", "sequence"} <= set(found):
            found.setdefault("past", total - found.get("sequence", 1))
    return found


def declare(model: onnx.ModelProto, interface: Interface, fixed: dict[str, int]) -> onnx.ModelProto:
    """A copy whose inputs and outputs name their axes, but for the fixed ones; shapes within are forgotten."""
    model = copy.deepcopy(model)
    for graph in nested_graphs(model.graph):
        del graph.value_info[:]
    plans = dict(_plans(interface))
    for value in [*model.graph.input, *model.graph.output]:
        dims = value.type.tensor_type.shape.dim
        for dim, axis in zip(dims, plans.get(value.name, [None] * len(dims)), strict=False):
            if axis is None:
                continue
            parts = axis.split(" + ")
            if all(part in fixed for part in parts):
                dim.dim_value = sum(fixed[part] for part in parts)
            elif dim.HasField("dim_value") or not dim.dim_param or axis in AXES:
                dim.dim_param = axis
    return model


def _plans(interface: Interface) -> Iterator[tuple[str, list[str | None]]]:
    """By name of an input or output, which axis each of its dimensions is."""
    yield interface.ids.name, ["batch", "sequence"]
    if interface.mask is not None:
        plane: list[str | None] = [None, "sequence"] if len(interface.mask.shape) == 4 else []
        yield interface.mask.name, ["batch", *plane, _TOTAL]
    if interface.positions is not None:
        yield interface.positions.name, ["sequence"] if len(interface.positions.shape) == 1 else ["batch", "sequence"]
    last_only = interface.logits.shape[1:2] == (1,) and interface.ids.shape[1] != 1
    yield interface.logits.name, ["batch", None if last_only or len(interface.logits.shape) == 2 else "sequence"]
    for pair in interface.caches:
        for spec, time in ((pair.past, "past"), (pair.present, _TOTAL)):
            if spec is not None:
                names: dict[str, str] = {"rows": "batch", "time": time}
                yield spec.name, [names.get(axis) for axis in pair.axes]


def _uses(interface: Interface, origin: Path) -> tuple[Use, ...]:
    """What a graph may be for, the most first. Some operators take no chunks; another graph may take step 0."""
    if interface.branch is None and not origin.with_name(FIRST).is_file():
        return (EVERYTHING, LOOP)
    return (EVERYTHING, LOOP, NOT_EMPTY, LATER)


def _survived(file: Path, origin: Path, fixed: dict[str, int], uses: Sequence[Use]) -> Use | None:
    return next((use for use in uses if _failure(file, origin, fixed, use) is None), None)


def _failure(file: Path, origin: Path, fixed: dict[str, int], use: Use) -> Failure | None:
    try:
        subject = Subject.open(file, origin)
    except BentoKVError as error:
        return Failure(Sizes(1, 1, 0), str(error))
    return subject.failure(fixed if subject.graph.interface.has_past else {**fixed, "past": 0}, use)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A graph that may hold, and what was rewritten in it."""

    model: onnx.ModelProto
    places: list[str]


def _rewrite(
    model: onnx.ModelProto,
    interface: Interface,
    sizes: Sizes,
    seen: dict[str, NDArray[np.generic]],
    *,
    whole: bool,
    slices: bool,
) -> _Candidate:
    """The graph with constants made sizes again."""
    changed = copy.deepcopy(model)
    past = next((pair for pair in interface.caches if pair.past is not None), None)
    builder = Builder(changed, sizes, interface.ids.name, _time_of(past))
    rewriter = Rewriter(changed, builder, seen, whole=whole, slices=slices)
    rewriter.run()
    return _Candidate(changed, rewriter.changed)


def _time_of(pair: CachePair | None) -> tuple[str, int] | None:
    return None if pair is None or pair.past is None else (pair.past.name, pair.axes.index("time"))


def _most_that_holds(
    original: onnx.ModelProto,
    candidates: Sequence[_Candidate],
    traced: Sizes,
    declared: dict[str, int],
    file: Path,
    origin: Path,
    uses: Sequence[Use],
) -> Restored:
    """The candidate that survives the most axes; of several the one for most uses."""
    interface = interface_of(original)
    values = {axis: getattr(traced, axis) for axis in AXES}
    reasons: dict[str, str] = {}
    for count in range(len(AXES) + 1):
        for kept in itertools.combinations(AXES, count):
            fixed = {axis: values[axis] for axis in kept}
            tried_uses = (EVERYTHING,) if "past" in fixed else dict.fromkeys([*uses, NOT_EMPTY])
            for use, candidate in itertools.product(tried_uses, candidates):
                tried = declare(candidate.model, interface, fixed)
                write(tried, file)
                failure = _failure(file, origin, fixed, use)
                if failure is not None:
                    reasons.setdefault("+".join(kept), f"at {failure.sizes}: {failure.reason}")
                elif _agrees(original, tried, traced, file, origin):
                    restored = _outcome(original, tried, fixed, declared, candidate.places, reasons, use)
                    if use not in uses:
                        restored.left.append(_no_empty_past(reasons[""]))
                    return restored
        if count == 0 and not declared:
            write(original, file)
            failure = _failure(file, origin, {}, uses[-1])
            if failure is not None and failure.ran:  # no size of an axis is what is wrong
                return Restored(original, [], [_wrong(failure)])
    return Restored(original, [], [_stays(axis, size, reasons.get("", "")) for axis, size in values.items()])


def _agrees(original: onnx.ModelProto, tried: onnx.ModelProto, traced: Sizes, file: Path, origin: Path) -> bool:
    """At the sizes of the trace nothing may have changed."""
    write(original, file)
    expected = Subject.open(file, origin).run(traced)
    write(tried, file)
    subject = Subject.open(file, origin)
    return not subject.differ(subject.run(traced), expected)


def _outcome(
    original: onnx.ModelProto,
    model: onnx.ModelProto,
    fixed: dict[str, int],
    declared: dict[str, int],
    places: list[str],
    reasons: dict[str, str],
    use: Use,
) -> Restored:
    left = [
        _stays(axis, size, reasons.get("+".join(a for a in fixed if a != axis), "")) for axis, size in fixed.items()
    ]
    restored = [axis for axis in AXES if axis not in fixed]
    if not restored or (not places and not set(declared) - set(fixed)):
        return Restored(original, [], left)
    mended = _declared_changes(original, model, {a: s for a, s in declared.items() if a in restored}, use)
    if places:
        more = f" and {len(places) - 3} more" if len(places) > 3 else ""
        mended.append(
            Change(
                "dynamic-axis-baked",
                "; ".join(places[:3]) + more,
                f"{len(places)} constants that a trace had made of sizes are computed from the inputs again; tried with "
                f"{', '.join(restored)} varied: {use.text}",
            )
        )
    return Restored(model, mended, left)


def _declared_changes(
    before: onnx.ModelProto, after: onnx.ModelProto, declared: dict[str, int], use: Use
) -> list[Change]:
    changed = []
    for one, other in zip(
        [*before.graph.input, *before.graph.output], [*after.graph.input, *after.graph.output], strict=True
    ):
        dims = zip(one.type.tensor_type.shape.dim, other.type.tensor_type.shape.dim, strict=True)
        changed += [one.name for a, b in dims if a.HasField("dim_value") and not b.HasField("dim_value")][:1]
    if not changed:
        return []
    axes = ", ".join(f"{axis} (was {size})" for axis, size in declared.items()) or "sizes of outputs"
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return [
        Change(
            "dynamic-axis-baked",
            ", ".join(changed[:3]) + more,
            f"declared symbolic: {axes}. Tried with batches, sequences and pasts of several sizes: {use.text}",
        )
    ]


def _stays(axis: str, size: int, reason: str) -> Change:
    because = f" With it free the graph fails {reason}." if reason else ""
    return Change(
        "dynamic-axis-baked",
        f"{axis} = {size}",
        f"the {axis} axis stays at {size}.{because} A new export is needed: give the model as --reference",
    )


def _no_empty_past(reason: str) -> Change:
    return Change(
        "zero-length-past-rejected",
        "past = 0",
        f"the graph takes any past but an empty one ({reason}), so step 0 needs another graph. A new export has one for "
        "all: give the model as --reference",
    )


def _wrong(failure: Failure) -> Change:
    return Change(
        "numeric-mismatch",
        str(failure.sizes),
        f"{failure.reason}, and no axis is baked that could be mended. A new export is needed: give the model as "
        "--reference",
    )


def _untold(failure: Failure) -> Change:
    return Change(
        "dynamic-axis-baked",
        str(failure.sizes),
        f"the graph fails at {failure.sizes}: {failure.reason}. At which sizes it was traced cannot be told, so its "
        "constants cannot be mended. A new export is needed: give the model as --reference",
    )

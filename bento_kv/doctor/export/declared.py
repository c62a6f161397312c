"""The export as the graph declares it: is there a cache, does it pair up, may its axes vary?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bento_kv.contract.graph_io import INPUT_IDS, POSITION_IDS, STEP_INPUTS, TensorSpec
from bento_kv.doctor.export.io import IoFault, compare
from bento_kv.doctor.export.loading import Opened
from bento_kv.doctor.records import Finding, GraphAxis
from bento_kv.runtime.interface import Interface
from bento_kv.runtime.pairing import Axis

_AXES: dict[Axis, str] = {"heads": "heads", "dim": "head size"}
# Of what an in-place graph takes besides tokens and positions, how many axes there are, all of which vary.
_PACKED_AXES = {spec.name: len(spec.shape) for spec in STEP_INPUTS if spec.name not in (INPUT_IDS, POSITION_IDS)}


def check_declared(opened: Opened, *, configured: tuple[int, int] | None = None) -> list[Finding]:
    """Findings that need no run; none where inputs and outputs cannot be told.

    Args:
        opened: its graph that takes a past.
        configured: heads and head size by which a loop allocates the cache.
    """
    interface = opened.interface
    if interface is None:
        return []
    missing = list(_no_cache(interface))
    if missing:
        return missing
    return [
        *_unpaired(interface),
        *_dtypes(interface),
        *(list(_shapes(interface)) or _configured(interface, configured)),
        *_baked(interface, opened.one_token_steps, opened.inputs if interface.packed else ()),
    ]


def _no_cache(interface: Interface) -> Iterator[Finding]:
    if interface.has_past and interface.has_present:
        return
    lacking = [s for s, has in (("inputs", interface.has_past), ("outputs", interface.has_present)) if not has]
    has = "past inputs" if interface.has_past else "present outputs" if interface.has_present else "neither"
    explain = (
        f"The graph has no cache {' and no cache '.join(lacking)} ({has}). Each step has to compute the whole "
        "sequence again, so its cost grows with every token, whatever the loop does."
    )
    fix = (
        "Export it with its cache: `bento-kv repair FILE -o REPAIRED --reference SOURCE`, or `bento-kv export SOURCE`."
    )
    if interface.has_present:
        fix = (
            "This is the first of a pair: put decoder_with_past_model.onnx, which takes the later steps, beside it. "
            "Or e" + fix[1:]
        )
    yield Finding(id="no-cache-io", where="the graph's inputs and outputs", explain=explain, fix=fix)


def _unpaired(interface: Interface) -> Iterator[Finding]:
    holes = [pair for pair in interface.caches if pair.past is None or pair.present is None]
    if not holes:
        return
    first = holes[0]
    there = first.past or first.present
    name, kind = (there.name if there else "?"), "present output" if first.present is None else "past input"
    yield Finding(
        id="past-present-unpaired",
        where=f"{name}{_and_more(len(holes))}",
        explain=f"Layer {first.layer}, {first.side}: {name} has no {kind} of the same layer and side. A loop that "
        "feeds present back as past has nothing to feed there, or feeds another layer's.",
        fix="Export the graph again with a past input and a present output for each layer's keys and values; names "
        "that only differ in spelling are normalised by `bento-kv repair`.",
    )


def _dtypes(interface: Interface) -> Iterator[Finding]:
    differing = [
        (past, present)
        for past, present in _pairs(interface)
        if any(fault.kind == "dtype" for fault in compare(present, past))
    ]
    if differing:
        past, present = differing[0]
        yield Finding(
            id="dtype-mismatch",
            where=f"{past.name}{_and_more(len(differing))}",
            explain=f"{past.name} takes {past.dtype} and {present.name} gives {present.dtype}: fed back as it is, the "
            "runtime refuses it, and a cast in the loop copies the whole cache in every step.",
            fix="Cast inside the graph, or export again with one type for the cache.",
        )


def _pairs(interface: Interface) -> Iterator[tuple[TensorSpec, TensorSpec]]:
    for pair in interface.caches:
        if pair.past is not None and pair.present is not None:
            yield pair.past, pair.present


def _shapes(interface: Interface) -> Iterator[Finding]:
    for pair in interface.caches:
        past, present = pair.past, pair.present
        if past is None or present is None:
            continue
        text = next((_misfit(pair.axes, past, present, fault) for fault in compare(present, past)), "")
        if text:
            yield Finding(
                id="kv-shape-mismatch",
                where=f"{past.name} and {present.name}",
                explain=f"{text}. The cache that a step returns does not fit into the next step.",
                fix="Export again with the number of key and value heads and the head size of the model's configuration "
                "(head_dim, where it has one, is not hidden_size / num_attention_heads).",
            )
            return


def _misfit(axes: Sequence[Axis], past: TensorSpec, present: TensorSpec, fault: IoFault) -> str:
    """What does not fit of heads and head size, whatever the other axes are; empty if nothing."""
    if fault.rank:
        return f"{past.name} has rank {len(past.shape)} and {present.name} rank {len(present.shape)}"
    wrong = [at for at in fault.sizes if axes[at] in _AXES]
    if not wrong:
        return ""
    return (
        f"{past.name} is {_show(past)} and {present.name} is {_show(present)}: axis {wrong[0]}, {_AXES[axes[wrong[0]]]}"
    )


def _configured(interface: Interface, configured: tuple[int, int] | None) -> Iterator[Finding]:
    """The geometry that a configuration beside the graph gives, if it gives one."""
    if configured is None:
        return
    axes: tuple[Axis, Axis] = ("heads", "dim")
    for pair in interface.caches:
        for axis, size in zip(axes, configured, strict=True):
            own, spec = pair.size(axis), pair.past or pair.present
            if spec is not None and own is not None and own != size:
                yield Finding(
                    id="kv-shape-mismatch",
                    where=f"{spec.name} and genai_config.json",
                    explain=f"{spec.name} is {_show(spec)}: {_AXES[axis]} {own}, and genai_config.json says {size}. A loop "
                    "that allocates the cache by the configuration feeds what the graph refuses.",
                    fix="Correct num_key_value_heads and head_size in genai_config.json, or build the model again.",
                )
                return


def _baked(interface: Interface, has_first: bool, packed_inputs: Sequence[TensorSpec]) -> Iterator[Finding]:
    """Declared sizes where an axis has to vary; one finding for each kind of axis."""
    places: dict[GraphAxis, list[str]] = {}
    varying = _packed_axes(interface, packed_inputs) if interface.packed else _growing_axes(interface, has_first)
    for spec, axes in (*varying, *_cache_axes(interface)):
        expected = spec.model_copy(update={"shape": tuple(axes.get(at, size) for at, size in enumerate(spec.shape))})
        for fault in compare(spec, expected):
            for at in fault.fixed:
                places.setdefault(axes[at], []).append(f"{spec.name} axis {at} = {spec.shape[at]}")
    for axis, found in places.items():
        yield _baked_finding(axis, found)


_Varying = tuple[TensorSpec, dict[int, GraphAxis]]  # a tensor, and those of its axes that have to vary


def _packed_axes(interface: Interface, inputs: Sequence[TensorSpec]) -> Iterator[_Varying]:
    for spec in inputs:
        yield spec, dict.fromkeys(range(_PACKED_AXES.get(spec.name, 0)), "step")
    for one in (interface.ids, interface.positions):
        if one is not None:
            yield one, {0: "sequence"}


def _growing_axes(interface: Interface, has_first: bool) -> Iterator[_Varying]:
    """Of a graph beside which another takes the prompt, a sequence of one token is all that there has to be."""

    def sequence(spec: TensorSpec, *, one_is_enough: bool) -> dict[int, GraphAxis]:
        return {} if one_is_enough and spec.shape[1] == 1 else {1: "sequence"}

    ids, mask, positions, logits = interface.ids, interface.mask, interface.positions, interface.logits
    yield ids, {0: "batch", **sequence(ids, one_is_enough=has_first)}
    if mask is not None:
        yield mask, {0: "batch", len(mask.shape) - 1: "past"}
    if positions is not None and len(positions.shape) == 2:
        yield positions, sequence(positions, one_is_enough=has_first)
    # Logits of the last token only are all that a loop needs.
    yield logits, {0: "batch", **(sequence(logits, one_is_enough=True) if len(logits.shape) == 3 else {})}


def _cache_axes(interface: Interface) -> Iterator[_Varying]:
    for pair in interface.caches:
        rows = next(at for at, axis in enumerate(pair.axes) if axis in ("rows", "rows_heads"))
        for spec in (pair.past, pair.present):
            if spec is not None and len(spec.shape) == len(pair.axes):
                yield spec, {rows: "batch", pair.axes.index("time"): "past"}


_HARM: dict[GraphAxis, str] = {
    "batch": "The decoder takes that many rows and no other number: requests cannot share a step.",
    "sequence": "The decoder takes that many tokens a step: a prompt of another length does not go in.",
    "past": "The decoder takes a past of that length and no other: the step after the first fails, or needs padding.",
    "step": "The decoder takes steps of one shape only.",
}


def _baked_finding(axis: GraphAxis, places: Sequence[str]) -> Finding:
    return Finding(
        id="dynamic-axis-baked",
        where=f"{places[0]}{_and_more(len(places))}",
        axis=axis,
        explain=f"The {axis} axis is declared with a fixed size. {_HARM[axis]}",
        fix="Declare the axis dynamic at export (dynamic_axes or dynamic_shapes for input_ids, attention_mask, "
        "position_ids, every past and every present). `bento-kv repair` restores it where the graph in truth takes "
        "other sizes; with --reference it exports again.",
    )


def _show(spec: TensorSpec) -> str:
    return "[" + ", ".join(str(size) for size in spec.shape) + "]"


def _and_more(count: int) -> str:
    return f" and {count - 1} more" if count > 1 else ""

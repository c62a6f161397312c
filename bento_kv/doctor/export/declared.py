"""The export as the graph declares it: is there a cache, does it pair up, may its axes vary?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from bento_kv.contract.graph_io import INPUT_IDS, POSITION_IDS, STEP_INPUTS, TensorSpec
from bento_kv.doctor.export.loading import Opened
from bento_kv.doctor.records import Finding, GraphAxis
from bento_kv.runtime.interface import Axis, CachePair, Interface

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
    differing = [p for p in interface.caches if p.past and p.present and p.past.dtype != p.present.dtype]
    if differing and (past := differing[0].past) and (present := differing[0].present):
        yield Finding(
            id="dtype-mismatch",
            where=f"{past.name}{_and_more(len(differing))}",
            explain=f"{past.name} takes {past.dtype} and {present.name} gives {present.dtype}: fed back as it is, the "
            "runtime refuses it, and a cast in the loop copies the whole cache in every step.",
            fix="Cast inside the graph, or export again with one type for the cache.",
        )


def _shapes(interface: Interface) -> Iterator[Finding]:
    for pair in interface.caches:
        past, present = pair.past, pair.present
        if past is None or present is None:
            continue
        if len(past.shape) != len(present.shape):
            text = f"{past.name} has rank {len(past.shape)} and {present.name} rank {len(present.shape)}"
        else:
            axes: list[Axis] = ["heads", "dim"]
            places = [pair.axes.index(axis) for axis in axes if axis in pair.axes]
            wrong = [i for i in places if _differ(past.shape[i], present.shape[i])]
            if not wrong:
                continue
            text = (
                f"{past.name} is {_show(past)} and {present.name} is {_show(present)}: axis {wrong[0]}, "
                f"{_AXES[pair.axes[wrong[0]]]}"
            )
        yield Finding(
            id="kv-shape-mismatch",
            where=f"{past.name} and {present.name}",
            explain=f"{text}. The cache that a step returns does not fit into the next step.",
            fix="Export again with the number of key and value heads and the head size of the model's configuration "
            "(head_dim, where it has one, is not hidden_size / num_attention_heads).",
        )
        return


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


def _differ(one: int | str, other: int | str) -> bool:
    return isinstance(one, int) and isinstance(other, int) and one != other


def _baked(interface: Interface, has_first: bool, packed_inputs: Sequence[TensorSpec]) -> Iterator[Finding]:
    """Declared sizes where a symbol has to be; one finding for each kind of axis."""
    groups: dict[GraphAxis, list[str]] = {}

    def see(kind: GraphAxis, spec: TensorSpec | None, axis: int, allowed: Sequence[int] = ()) -> None:
        size = spec.shape[axis] if spec is not None and axis < len(spec.shape) else "?"
        if isinstance(size, int) and size not in allowed:
            groups.setdefault(kind, []).append(f"{spec.name if spec else ''} axis {axis} = {size}")

    if interface.packed:
        for spec in packed_inputs:
            for axis in range(_PACKED_AXES.get(spec.name, 0)):
                see("step", spec, axis)
        see("sequence", interface.ids, 0)
        see("sequence", interface.positions, 0)
    else:
        one_token = (1,) if has_first else ()
        see("batch", interface.ids, 0)
        see("sequence", interface.ids, 1, one_token)
        _see_mask(see, interface.mask)
        if interface.positions is not None and len(interface.positions.shape) == 2:
            see("sequence", interface.positions, 1, one_token)
        see("batch", interface.logits, 0)
        if len(interface.logits.shape) == 3:
            see("sequence", interface.logits, 1, (1,))  # of the last token only, which is all that a loop needs
    for pair in interface.caches:
        for side in (pair.past, pair.present):
            _see_cache(see, pair, side)
    for kind, places in groups.items():
        yield _baked_finding(kind, places)


_See = Callable[..., None]


def _see_mask(see: _See, mask: TensorSpec | None) -> None:
    if mask is not None:
        see("batch", mask, 0)
        see("past", mask, len(mask.shape) - 1)


def _see_cache(see: _See, pair: CachePair, spec: TensorSpec | None) -> None:
    if spec is not None and len(spec.shape) == len(pair.axes):
        see("batch", spec, next(i for i, axis in enumerate(pair.axes) if axis in ("rows", "rows_heads")))
        see("past", spec, pair.axes.index("time"))


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

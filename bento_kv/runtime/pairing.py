"""Which of a graph's inputs and outputs are its cache: keys and values by layer and side, and states of one size."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bento_kv.contract.graph_io import TensorSpec

Side = Literal["key", "value", "both"]
# `rows_heads` is one axis for both, rows slower.
Axis = Literal["stack", "rows", "rows_heads", "heads", "time", "dim"]

_CANONICAL: tuple[Axis, ...] = ("rows", "heads", "time", "dim")
_TRANSPOSED: tuple[Axis, ...] = ("rows", "heads", "dim", "time")
_TIME_MAJOR: tuple[Axis, ...] = ("rows", "time", "heads", "dim")
_STACKED: tuple[Axis, ...] = ("stack", "rows", "heads", "time", "dim")
_STACKED_SECOND: tuple[Axis, ...] = ("rows", "stack", "heads", "time", "dim")
_ONE_HEAD: tuple[Axis, ...] = ("rows", "time", "dim")
_FUSED: tuple[Axis, ...] = ("rows_heads", "time", "dim")
_FUSED_TRANSPOSED: tuple[Axis, ...] = ("rows_heads", "dim", "time")

FLOATS = ("float", "float32", "float16", "bfloat16", "double", "float64")
_SIDES: dict[str, Side] = {"key": "key", "keys": "key", "k": "key", "value": "value", "values": "value", "v": "value"}
_STATE_WORDS = ("conv", "ssm", "recurrent", "rnn", "state", "mamba")
# What tells a past from its present in their names.
_TENSES = ("past", "present", "in", "input", "out", "output", "new", "next", "updated", "prev", "previous", "old")


@dataclass(frozen=True, slots=True)
class CachePair:
    """One past input and the present output that continues it.

    Attributes:
        layer: from 0.
        side: `both` where keys and values are in one tensor, stacked or side by side.
        past, present: as the graph declares them; None where there is no such input or output.
        axes: what each axis of the tensors is.
    """

    layer: int
    side: Side
    past: TensorSpec | None
    present: TensorSpec | None
    axes: tuple[Axis, ...]

    def size(self, axis: Axis) -> int | None:
        """The declared size of an axis, of the past if there is one; None where it is symbolic or absent."""
        spec = self.past or self.present
        if spec is None or axis not in self.axes:
            return None
        size = spec.shape[self.axes.index(axis)]
        return size if isinstance(size, int) else None


@dataclass(frozen=True, slots=True)
class StatePair:
    """A state that goes in, and what becomes of it."""

    past: TensorSpec
    present: TensorSpec


def pair_caches(pasts: Sequence[TensorSpec], presents: Sequence[TensorSpec]) -> tuple[CachePair, ...]:
    """Past and present by layer and side; a side without its counterpart is a pair with a hole."""
    # Layers may be counted from 1: of pasts and presents alike, or one that is missing would shift the others.
    numbers = [number for spec in (*pasts, *presents) if (number := _number(spec.name)) is not None]
    base = 1 if numbers and min(numbers) == 1 else 0
    before, after = _placed(pasts, base), _placed(presents, base)
    pairs = []
    for layer, side in sorted({*before, *after}, key=lambda place: (place[0], place[1] != "key")):
        past, present = before.get((layer, side)), after.get((layer, side))
        axes = _axes(side, past, present, before.get((layer, "value")) or after.get((layer, "value")))
        pairs.append(CachePair(layer, side, past, present, axes))
    return tuple(pairs)


def _placed(specs: Sequence[TensorSpec], base: int) -> dict[tuple[int, Side], TensorSpec]:
    """Layer and side of each tensor: by its name if the names tell them all apart, else by the order of the graph."""
    if not specs:
        return {}
    named = [(_number(spec.name), _side(spec)) for spec in specs]
    if len(set(named)) == len(named) and all(number is not None for number, _ in named):
        return {(number - base, side): s for (number, side), s in zip(named, specs, strict=True) if number is not None}
    if any(_stacked(spec) for spec in specs):
        return {(index, "both"): spec for index, spec in enumerate(specs)}
    return {(index // 2, "value" if index % 2 else "key"): spec for index, spec in enumerate(specs)}


def _number(name: str) -> int | None:
    numbers = re.findall(r"\d+", name)
    return int(numbers[-1]) if numbers else None


def _side(spec: TensorSpec) -> Side:
    if _stacked(spec):
        return "both"
    words = re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", spec.name).lower().replace("key_value", "kv"))
    sides = [_SIDES[word] for word in words if word in _SIDES]
    return sides[-1] if sides else "both"


def _stacked(spec: TensorSpec) -> bool:
    return len(spec.shape) == 5


def _axes(
    side: Side, past: TensorSpec | None, present: TensorSpec | None, value: TensorSpec | None
) -> tuple[Axis, ...]:
    """What the axes are: the one that grows is time; of the others, the order that exporters have been seen to use."""
    spec = past or present
    if spec is None:
        return _CANONICAL
    if len(spec.shape) == 5:
        return _STACKED_SECOND if spec.shape[1] == 2 and spec.shape[0] != 2 else _STACKED
    time = _growing_axis(past, present)
    if len(spec.shape) == 3:
        if "head" not in str(spec.shape[0]):
            return _ONE_HEAD
        return _FUSED_TRANSPOSED if time == 2 else _FUSED
    if time is None and side == "key" and value is not None and value.shape != spec.shape:
        # With nothing symbolic to go by, keys that are values with their last two axes exchanged are transposed.
        time = 3 if (*value.shape[:2], value.shape[3], value.shape[2]) == spec.shape else None
    return {1: _TIME_MAJOR, 3: _TRANSPOSED}.get(time or 2, _CANONICAL)


def _growing_axis(past: TensorSpec | None, present: TensorSpec | None) -> int | None:
    """The axis behind the first that differs between past and present, or that alone is symbolic."""
    if past is not None and present is not None and len(past.shape) == len(present.shape):
        differing = [i for i in range(1, len(past.shape)) if past.shape[i] != present.shape[i]]
        symbolic = [i for i in differing if not (isinstance(past.shape[i], int) and isinstance(present.shape[i], int))]
        for candidates in (symbolic, differing):
            if len(candidates) == 1:
                return candidates[0]
    spec = past or present
    free = [i for i in range(1, len(spec.shape)) if not isinstance(spec.shape[i], int)] if spec is not None else []
    return free[0] if len(free) == 1 else None


def pair_states(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> tuple[StatePair, ...]:
    """States by their names, past and present: tensors of one size but for the rows, which come back."""
    pasts, presents = ([spec for spec in specs if _may_be_state(spec)] for specs in (inputs, outputs))
    before, after = ({_stem(spec.name): spec for spec in specs} for specs in (pasts, presents))
    if before.keys() <= after.keys() and len(before) == len(pasts):
        return tuple(StatePair(past, after[stem]) for stem, past in before.items())
    alike = [(one.dtype, len(one.shape)) for one in pasts] == [(one.dtype, len(one.shape)) for one in presents]
    return tuple(StatePair(*pair) for pair in zip(pasts, presents, strict=True)) if alike else ()


def _may_be_state(spec: TensorSpec) -> bool:
    """Named as one; or as a cache that is neither keys nor values, and of one size but for the rows."""
    name = spec.name.lower()
    if spec.dtype not in FLOATS or len(spec.shape) < 2 or "mask" in name or "logits" in name:
        return False
    if _side(spec) in ("key", "value"):
        return False
    if any(word in name for word in _STATE_WORDS):
        return True
    sized = all(isinstance(size, int) for size in spec.shape[1:])
    return sized and len(spec.shape) < 5 and any(word in name for word in ("past", "cache", "present"))


def _stem(name: str) -> str:
    """What the names of a past and its present have in common."""
    return ".".join(word for word in re.split(r"[._/]", name.lower()) if word not in _TENSES)

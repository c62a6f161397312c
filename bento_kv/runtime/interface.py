"""What a decoder graph's inputs and outputs are for, read from their names, types and shapes.

Exporters agree on none of the names. What they share is structure: the cache is the set of floating-point inputs of rank
3 to 5 that come back as outputs, an axis of them grows, and the names have the layer's number and the side in them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from bento_kv.contract.graph_io import INPUT_IDS, PACKED_NAMES, POSITION_IDS, TensorSpec
from bento_kv.contract.precision import CACHE_ELEMENTS
from bento_kv.errors import DecoderError

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

_FLOATS = ("float", "float32", "float16", "bfloat16", "double", "float64")
# Our own layout keeps its scales in the graph, so that stored integers can be passed on as they are.
_PACKED_CACHES = (*_FLOATS, *(element.dtype for element in CACHE_ELEMENTS.values()))
_INTEGERS = ("int64", "int32")
_SIDES: dict[str, Side] = {"key": "key", "keys": "key", "k": "key", "value": "value", "values": "value", "v": "value"}
# How many logits are wanted, from the last token back; 0 is all of them (transformers, transformers.js).
_KEEPS = ("num_logits_to_keep", "logits_to_keep")
# What names of caches speak of, where no input and output of one name tell it.
_CACHE_WORDS = ("past", "cache", "kv", "key", "value", "present")


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
class Interface:
    """The roles of a graph's inputs and outputs.

    Attributes:
        ids: token ids, `[rows, tokens]`.
        logits: `[rows, tokens, vocab_size]`.
        mask: attention mask, `[rows, past + tokens]`.
        positions: position ids, `[rows, tokens]`; or `[tokens]`.
        branch: the switch of a merged decoder, true where a past is fed.
        zeros: inputs that a causal language model is fed zeros, such as token types.
        caches: by layer, keys before values.
        keep: how many logits are wanted: a number, 0 for all; or, with an axis that varies, the tokens whose are.
        packed: the graph is of the in-place layout, whose tokens are packed: `[tokens]`.
    """

    ids: TensorSpec
    logits: TensorSpec
    mask: TensorSpec | None
    positions: TensorSpec | None
    branch: TensorSpec | None
    zeros: tuple[TensorSpec, ...]
    caches: tuple[CachePair, ...]
    keep: TensorSpec | None = None
    packed: bool = False

    @property
    def fed(self) -> list[TensorSpec]:
        """All inputs."""
        others = (self.ids, self.mask, self.positions, self.branch, self.keep, *self.zeros)
        return [spec for spec in (*others, *(pair.past for pair in self.caches)) if spec is not None]

    @property
    def layers(self) -> int:
        return len({pair.layer for pair in self.caches})

    @property
    def has_past(self) -> bool:
        return any(pair.past for pair in self.caches)

    @property
    def has_present(self) -> bool:
        return any(pair.present for pair in self.caches)


def is_packed(inputs: Sequence[TensorSpec]) -> bool:
    """Whether a graph is of the in-place layout, whose steps are packed."""
    return {spec.name for spec in inputs} >= PACKED_NAMES


def recognize(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Interface:
    """Find out what a decoder's inputs and outputs are for.

    Raises:
        DecoderError: it is not a decoder, or has an input that nobody can fill without knowing more.
    """
    packed = is_packed(inputs)
    types = _PACKED_CACHES if packed else _FLOATS
    pasts = [spec for spec in inputs if _may_be_cache(spec, types)]
    logits = _logits(outputs)
    presents = [spec for spec in outputs if spec is not logits and _may_be_cache(spec, types)]
    rest = [spec for spec in inputs if spec not in pasts]
    if packed:
        named = {spec.name: spec for spec in rest}
        ids = named.get(INPUT_IDS, rest[0])
        return Interface(ids, logits, None, named.get(POSITION_IDS), None, (), _pair(pasts, presents), packed=True)
    mask = _first(rest, lambda s: "mask" in s.name.lower())
    positions = _first(rest, lambda s: "position" in s.name.lower() and "token_type" not in s.name.lower())
    branch = _first(rest, lambda s: s.dtype == "bool" and len(s.shape) <= 1 and s is not mask)
    keep = _first(rest, lambda s: s.name.lower() in _KEEPS and s.dtype in _INTEGERS and len(s.shape) <= 1)
    zeros = tuple(s for s in rest if "token_type" in s.name.lower() or "segment" in s.name.lower())
    for spec, ranks in ((mask, (2, 4)), (positions, (1, 2))):
        if spec is not None and len(spec.shape) not in ranks:
            raise DecoderError(
                f"the graph's input {spec.name} {list(spec.shape)} has {len(spec.shape)} axes: not a "
                f"causal decoder's, which has {' or '.join(map(str, ranks))}"
            )
    taken = [mask, positions, branch, keep, *zeros]
    ids = _ids([spec for spec in rest if spec not in taken])
    unknown = [spec for spec in rest if spec is not ids and spec not in taken]
    if unknown:
        raise DecoderError(
            f"the graph's input {unknown[0].name} ({unknown[0].dtype}, {list(unknown[0].shape)}) is none of a causal "
            "decoder's: token ids, attention mask, position ids, a cache, use_cache_branch, num_logits_to_keep"
        )
    return Interface(ids, logits, mask, positions, branch, zeros, _pair(pasts, presents), keep)


def _first(specs: Sequence[TensorSpec], is_it: Callable[[TensorSpec], bool]) -> TensorSpec | None:
    return next((spec for spec in specs if is_it(spec)), None)


def _may_be_cache(spec: TensorSpec, types: Sequence[str] = _FLOATS) -> bool:
    if spec.dtype not in types or not 3 <= len(spec.shape) <= 5 or "mask" in spec.name.lower():
        return False
    return any(word in spec.name.lower() for word in _CACHE_WORDS)


def _logits(outputs: Sequence[TensorSpec]) -> TensorSpec:
    named = [s for s in outputs if "logits" in s.name.lower()]
    shaped = [s for s in outputs if s.dtype in _FLOATS and len(s.shape) in (2, 3) and not _may_be_cache(s)]
    found = [s for s in named if s.dtype in _FLOATS] or shaped
    if not found:
        if named:
            raise DecoderError(
                f"the graph's output {named[0].name} is {named[0].dtype}: logits are floating-point numbers, before any "
                "arg-max or sampling; export the model without what comes behind them"
            )
        raise DecoderError(
            f"the graph has no logits among its outputs ({', '.join(s.name for s in outputs[:4])}, ...): "
            "an output [batch, sequence, vocabulary] of a floating-point type"
        )
    return found[0]


def _ids(specs: Sequence[TensorSpec]) -> TensorSpec:
    integers = [s for s in specs if s.dtype in _INTEGERS and len(s.shape) == 2]
    named = [s for s in integers if "ids" in s.name.lower() or "token" in s.name.lower()]
    found = named or integers
    if not found:
        raise DecoderError(
            "the graph has no token ids among its inputs: an input [batch, sequence] of integers; "
            f"it has {', '.join(s.name for s in specs[:4]) or 'none besides mask, positions and cache'}"
        )
    return found[0]


def _pair(pasts: Sequence[TensorSpec], presents: Sequence[TensorSpec]) -> tuple[CachePair, ...]:
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

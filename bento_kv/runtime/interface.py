"""What a decoder graph's inputs and outputs are for, read from their names, types and shapes.

Exporters agree on none of the names. What they share is structure: the cache is the set of floating-point inputs of rank
3 to 5 that come back as outputs, an axis of them grows, and the names have the layer's number and the side in them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bento_kv.contract.graph_io import INPUT_IDS, PACKED_NAMES, POSITION_IDS, TensorSpec
from bento_kv.contract.precision import CACHE_ELEMENTS
from bento_kv.errors import DecoderError
from bento_kv.runtime.pairing import FLOATS, CachePair, StatePair, pair_caches, pair_states

# Our own layout keeps its scales in the graph, so that stored integers can be passed on as they are.
_PACKED_CACHES = (*FLOATS, *(element.dtype for element in CACHE_ELEMENTS.values()))
_INTEGERS = ("int64", "int32")
_ROUNDED = ("int8", "uint8", "int4", "uint4", "float8e4m3fn", "float8e5m2")
# How many logits are wanted, from the last token back; 0 is all of them (transformers, transformers.js).
_KEEPS = ("num_logits_to_keep", "logits_to_keep")
# Where a step writes into a cache, or how much of it is filled: the columns of the new tokens, or their first.
_WRITES = re.compile(
    r"((cache|write|start)_pos(ition)?s?|input_pos|(cache|past)(_seq|_sequence)?_len(gth)?s?|(cache|write)_index)"
)
# What names of caches speak of, where no input and output of one name tell it.
_CACHE_WORDS = ("past", "cache", "kv", "key", "value", "present")


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
        states: what is carried from step to step in one size: of convolutions, of recurrences.
        write: where the new tokens go in the cache.
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
    states: tuple[StatePair, ...] = ()
    write: TensorSpec | None = None
    packed: bool = False

    @property
    def fed(self) -> list[TensorSpec]:
        """All inputs."""
        others = (self.ids, self.mask, self.positions, self.branch, self.keep, self.write, *self.zeros)
        pasts = (*(pair.past for pair in self.caches), *(state.past for state in self.states))
        return [spec for spec in (*others, *pasts) if spec is not None]

    @property
    def layers(self) -> int:
        return len({pair.layer for pair in self.caches})

    @property
    def static(self) -> bool:
        """The cache has one size, past and present, and a step writes into it."""
        return self.write is not None and any(
            pair.past and pair.present and pair.size("time") is not None and pair.past.shape == pair.present.shape
            for pair in self.caches
        )

    @property
    def foreign(self) -> str:
        """In words, what is carried from step to step besides a cache that grows by position; empty if nothing is."""
        if self.packed:
            return ""
        if self.states:
            beside = " beside keys and values" if self.caches else ""
            return f"states of one size{beside} ({self.states[0].past.name})"
        return f"a static cache, written at {self.write.name}" if self.static and self.write else ""

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
    types = _PACKED_CACHES if packed else FLOATS
    logits = _logits(outputs)
    states = () if packed else pair_states(inputs, [spec for spec in outputs if spec is not logits])
    stateful = [spec for state in states for spec in (state.past, state.present)]
    pasts = [spec for spec in inputs if spec not in stateful and _may_be_cache(spec, types)]
    presents = [s for s in outputs if s is not logits and s not in stateful and _may_be_cache(s, types)]
    rest = [spec for spec in inputs if spec not in pasts and spec not in stateful]
    if packed:
        named = {spec.name: spec for spec in rest}
        ids = named.get(INPUT_IDS, rest[0])
        return Interface(
            ids, logits, None, named.get(POSITION_IDS), None, (), pair_caches(pasts, presents), packed=True
        )
    mask = _first(rest, lambda s: "mask" in s.name.lower())
    write = _first(rest, lambda s: s.dtype in _INTEGERS and bool(_WRITES.fullmatch(s.name.lower())))
    positions = _first(
        rest, lambda s: s is not write and "position" in s.name.lower() and "token_type" not in s.name.lower()
    )
    branch = _first(rest, lambda s: s.dtype == "bool" and len(s.shape) <= 1 and s is not mask)
    keep = _first(rest, lambda s: s.name.lower() in _KEEPS and s.dtype in _INTEGERS and len(s.shape) <= 1)
    zeros = tuple(s for s in rest if "token_type" in s.name.lower() or "segment" in s.name.lower())
    for spec, ranks in ((mask, (2, 4)), (positions, (1, 2))):
        if spec is not None and len(spec.shape) not in ranks:
            raise DecoderError(
                f"the graph's input {spec.name} {list(spec.shape)} has {len(spec.shape)} axes: not a "
                f"causal decoder's, which has {' or '.join(map(str, ranks))}"
            )
    taken = [mask, positions, branch, keep, write, *zeros]
    ids = _ids([spec for spec in rest if spec not in taken])
    unknown = [spec for spec in rest if spec is not ids and spec not in taken]
    rounded = next((spec for spec in unknown if _may_be_cache(spec, _ROUNDED)), None)
    if rounded is not None:
        raise DecoderError(
            f"the graph keeps its cache in {rounded.dtype} ({rounded.name}, {list(rounded.shape)}), and what that stands for "
            "is in the graph alone: it cannot be judged. Export the same decoder with its cache in floating point, and "
            "judge that"
        )
    if unknown:
        raise DecoderError(
            f"the graph's input {unknown[0].name} ({unknown[0].dtype}, {list(unknown[0].shape)}) is none of a causal "
            "decoder's: token ids, attention mask, position ids, a cache or a state that comes back, cache_position, "
            "use_cache_branch, num_logits_to_keep. Nobody knows what to feed it"
        )
    return Interface(ids, logits, mask, positions, branch, zeros, pair_caches(pasts, presents), keep, states, write)


def _first(specs: Sequence[TensorSpec], is_it: Callable[[TensorSpec], bool]) -> TensorSpec | None:
    return next((spec for spec in specs if is_it(spec)), None)


def _may_be_cache(spec: TensorSpec, types: Sequence[str] = FLOATS) -> bool:
    if spec.dtype not in types or not 3 <= len(spec.shape) <= 5 or "mask" in spec.name.lower():
        return False
    return any(word in spec.name.lower() for word in _CACHE_WORDS)


def _logits(outputs: Sequence[TensorSpec]) -> TensorSpec:
    named = [s for s in outputs if "logits" in s.name.lower()]
    shaped = [s for s in outputs if s.dtype in FLOATS and len(s.shape) in (2, 3) and not _may_be_cache(s)]
    found = [s for s in named if s.dtype in FLOATS] or shaped
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

"""What may mend a decoder that is too far from its source: options of an export, by what is at fault and what is in force.

They are data, kept with the check that failed; `spelling.py` writes them as each command takes them. Where it is said what an
option brings, `docs/log.md` has the numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bento_kv.contract.manifest import Manifest
from bento_kv.contract.precision import AUTO, candidates
from bento_kv.contract.record import Record
from bento_kv.contract.weight_options import NAMES, OptionValue, options_of

# What failed: predictions in prompts, or when decoding, or results that depend on the split into steps by more than rounding.
Fault = Literal["prefill", "decode", "rounding"]
_ALL: frozenset[Fault] = frozenset({"prefill", "decode", "rounding"})
_TEXT: frozenset[Fault] = frozenset({"prefill", "decode"})
_PROMPTS: frozenset[Fault] = frozenset({"prefill"})
_DECODING: frozenset[Fault] = frozenset({"decode"})


class Remedy(Record):
    """An option of an export, with a value that it does not have yet.

    Attributes:
        option: `precision`, `kv_cache`, or a field of `QuantizationOptions`.
        value: that may mend it.
        reason: what it does, and what it costs.
    """

    option: str
    value: OptionValue
    reason: str


@dataclass(frozen=True, slots=True)
class _Rule:
    """When an option is worth a try.

    Attributes:
        option: see `Remedy`.
        better: from the value in force, and the number of layers, to a better one; None if there is none.
        faults: by precision, what it may mend.
        reason: see `Remedy`.
    """

    option: str
    better: Callable[[OptionValue, int], OptionValue | None]
    faults: Mapping[str, frozenset[Fault]]
    reason: str


def _to(value: OptionValue, *from_: OptionValue) -> Callable[[OptionValue, int], OptionValue | None]:
    """One value, where one of some others is in force; where any other is, unless they are given."""
    return lambda now, _: value if now != value and (not from_ or now in from_) else None


def _smaller_blocks(now: OptionValue, _: int) -> int | None:
    return None if int(now) <= 16 else 32 if int(now) > 32 else 16


def _more_edges(now: OptionValue, layers: int) -> int | None:
    more = max(2, 2 * int(now))
    return more if 2 * more < layers else None


# The cheapest first. Prompts of int4 go through int8 weights in columns, to which nothing that is done to blocks matters.
_RULES = (
    _Rule(
        "rotate",
        _to(True),
        {"int8": _ALL, "int4": _ALL},
        "spreads what is large in few channels over all; 5 to 9 % slower",
    ),
    _Rule("method", _to("gptq"), {"int4": _DECODING}, "rounds with a look at the inputs; the export takes longer"),
    _Rule(
        "reduce_range",
        _to(False),
        {"int8": _TEXT, "int4": _PROMPTS},
        "all 8 bits of int8 weights; prompts are slower without VNNI",
    ),
    _Rule("symmetric", _to(False), {"int4": _DECODING}, "a zero point for each block; few more bits"),
    _Rule("block_size", _smaller_blocks, {"int4": _DECODING}, "fewer weights share a scale; slower with few rows"),
    _Rule("head_bits", _to(8), {"int4": _TEXT}, "more bits for the weights that make the logits"),
    _Rule("edge_layers", _more_edges, {"int4": _DECODING}, "8 bits for the first and last layers"),
    _Rule(
        "kv_cache",
        _to("fp32"),
        dict.fromkeys(("fp32", "int8", "int4"), _ALL),
        "keys and values are not rounded; 4 times the memory",
    ),
    _Rule("precision", _to("int8"), {"int4": _DECODING}, "8 bits for all weights"),
    _Rule("precision", _to("fp32"), {"int8": _ALL, "int4": _ALL}, "no weight is rounded"),
    _Rule("precision", _to(AUTO), {"int8": _ALL, "int4": _ALL}, "tries precisions, and takes the smallest that passes"),
)


def remedies_of(manifest: Manifest, fault: Fault) -> tuple[Remedy, ...]:
    """What may mend a decoder, the cheapest first; nothing for another exporter's, whose options are not known."""
    if manifest.layout != "in-place":
        return ()
    in_force: dict[str, OptionValue] = {
        **manifest.quantization,
        "precision": manifest.precision,
        "kv_cache": manifest.kv_cache,
    }
    found = []
    for rule in _RULES:
        if rule.option in in_force and fault in rule.faults.get(manifest.precision, ()):
            better = rule.better(in_force[rule.option], len(manifest.layers))
            if better is not None:
                found.append(Remedy(option=rule.option, value=better, reason=rule.reason))
    return tuple(found)


def merged(remedies: Iterable[Remedy]) -> tuple[Remedy, ...]:
    """Those of several checks, each once, the cheapest first."""
    rank = {rule.reason: place for place, rule in enumerate(_RULES)}
    return tuple(sorted(dict.fromkeys(remedies), key=lambda each: rank.get(each.reason, len(rank))))


def applied(asked: Mapping[str, Any], remedy: Remedy) -> dict[str, Any]:
    """What to ask for instead: with the remedy, without what would mean nothing any more.

    Args:
        asked: `precision` and other options by name, those alone that were given.
        remedy: for what came of it.
    """
    options = {**asked, remedy.option: remedy.value}
    takes = {name for each in candidates(options.get("precision", "fp32")) for name in options_of(each)}
    return {name: value for name, value in options.items() if name not in NAMES or name in takes}


def table() -> list[tuple[str, str, str, str]]:
    """Option, precisions, what it may mend and why, for the docs."""
    return [
        (rule.option, precision, " and ".join(sorted(faults - {"rounding"}, reverse=True)), rule.reason)
        for rule in _RULES
        for precision, faults in rule.faults.items()
    ]

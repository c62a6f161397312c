"""What a decoder's weights and its cache may be made of: one row each.

All that depends on a precision and is no arithmetic of its own stands in its row: how close to its source a decoder of it
comes, what the runtime has to heed. Limits are relative to the largest value compared, at
least 1, unless a field says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from bento_kv.errors import ExportError

Precision = Literal["fp32", "fp16", "int8", "int4"]
KvCache = Literal["fp32", "int8"]
# What an export can be asked for: a precision, or the one of the fewest bits whose proof passes.
AskedPrecision = Literal["fp32", "int8", "int4", "auto"]

# fp32 against fp32 with other kernels: rounding only. Errors are taken relative to the largest reference value, at
# least 1, because logits and keys of some models run into the hundreds.
FP32_LIMIT = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityLimits:
    """How far predictions on text may be from the reference's; `proof/quality.py` says where the numbers are from.

    Attributes:
        kl: mean divergence in nats a token.
        top1: share of decided positions that change their first choice.
        perplexity: magnitude of the change of its logarithm.
    """

    kl: float
    top1: float
    perplexity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionTraits:
    """A row.

    Attributes:
        bits: of a weight.
        exported: `export` makes decoders of it; others come from other exporters.
        rounding: what other kernels and other chunks may change in results.
        golden: what another machine's kernels may change in a golden logit.
        quality: what it may cost.
        self_consistency: what the doctor allows a graph of unknown origin to differ from itself by, cached or not.
        against_reference: what the doctor allows it to differ from torch by: weights of few bits differ by what the bits
            leave out, which is not the export's fault.
        weight_error: of a weight, made floats again, relative to the reference's (Frobenius); None where weights are not
            quantized.
        tokens_in_pairs: a step is given an even number of tokens. The operator on blocks of weights takes tokens two by
            two, and one that is left alone by other arithmetic, so that its bits would depend on how many share the step.
    """

    bits: int
    exported: bool = True
    rounding: float
    golden: float
    quality: QualityLimits
    self_consistency: float
    against_reference: float
    weight_error: float | None = None
    tokens_in_pairs: bool = False


PRECISIONS: Mapping[Precision, PrecisionTraits] = {
    "fp32": PrecisionTraits(
        bits=32,
        rounding=FP32_LIMIT,
        golden=1e-3,
        quality=QualityLimits(kl=1e-5, top1=0.0, perplexity=1e-3),
        self_consistency=1e-4,
        against_reference=1e-3,
    ),
    "fp16": PrecisionTraits(
        bits=16,
        exported=False,
        rounding=0.1,
        golden=1e-3,
        quality=QualityLimits(kl=1e-3, top1=0.01, perplexity=5e-3),
        self_consistency=2e-2,
        against_reference=2e-2,
    ),
    # Where activations are rounded to 8 bits, what differs by 1e-6 before ends in another of their steps now and then, and
    # the next layers take it from there: 0.02 to 0.04 of the largest logit were seen. Mode `full` has no such differences,
    # and the equalities that it allows prove the loop.
    "int8": PrecisionTraits(
        bits=8,
        rounding=0.1,
        golden=0.1,
        quality=QualityLimits(kl=0.02, top1=0.05, perplexity=0.05),
        self_consistency=0.1,
        against_reference=0.3,
        weight_error=0.05,
    ),
    "int4": PrecisionTraits(
        bits=4,
        rounding=0.1,
        golden=0.1,
        quality=QualityLimits(kl=0.25, top1=0.2, perplexity=0.2),
        self_consistency=0.1,
        against_reference=1.0,
        weight_error=0.3,
        tokens_in_pairs=True,
    ),
}

EXPORTED: tuple[Precision, ...] = tuple(name for name, row in PRECISIONS.items() if row.exported)
ASKED: tuple[AskedPrecision, ...] = get_args(AskedPrecision)
AUTO: AskedPrecision = "auto"


def candidates(asked: str) -> tuple[Precision, ...]:
    """The precisions that a decoder may come to have, the one of the fewest bits first.

    Raises:
        ExportError: what is asked for is neither a precision that is exported nor `auto`.
    """
    if asked not in ASKED:
        raise ExportError(f"precision {asked!r} is not one of: {', '.join(ASKED)}")
    found = [name for name in EXPORTED if asked in (name, AUTO)]
    return tuple(sorted(found, key=lambda name: PRECISIONS[name].bits))


@dataclass(frozen=True, slots=True)
class CacheElement:
    """What keys and values are stored as: the element type as a graph declares it, and numpy's."""

    dtype: str
    numpy: type[np.generic]


CACHE_ELEMENTS: Mapping[KvCache, CacheElement] = {
    "fp32": CacheElement("float", np.float32),
    "int8": CacheElement("int8", np.int8),  # with a scale for each channel, in the graph
}


def coarsest(precision: Precision, kv_cache: KvCache) -> Precision:
    """The one of the two that decides how close results can come to the source's."""
    both: tuple[Precision, Precision] = (precision, kv_cache)
    return min(both, key=lambda name: PRECISIONS[name].bits)

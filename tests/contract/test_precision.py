"""One row a precision: none is missing, and fewer bits allow more."""

from __future__ import annotations

from itertools import pairwise
from typing import get_args

import pytest

from bento_kv.contract.precision import CACHE_ELEMENTS, EXPORTED, PRECISIONS, KvCache, Precision, coarsest


def test_every_precision_has_a_row() -> None:
    assert tuple(PRECISIONS) == get_args(Precision)
    assert tuple(CACHE_ELEMENTS) == get_args(KvCache)
    assert set(CACHE_ELEMENTS) <= set(PRECISIONS)


def test_limits_grow_as_bits_shrink() -> None:
    for one, other in pairwise(PRECISIONS.values()):
        assert one.bits > other.bits
        for field in ("rounding", "golden", "self_consistency", "against_reference"):
            assert getattr(one, field) <= getattr(other, field)


def test_what_is_exported_can_be_quantized() -> None:
    forms = pytest.importorskip("bento_kv.export.forms")
    assert set(forms.FORMS) == {name for name in EXPORTED if PRECISIONS[name].weight_error is not None}


@pytest.mark.parametrize(
    ("weights", "cache", "expected"),
    [("fp32", "fp32", "fp32"), ("fp32", "int8", "int8"), ("int8", "int8", "int8"), ("int4", "int8", "int4")],
)
def test_the_fewest_bits_decide(weights: Precision, cache: KvCache, expected: Precision) -> None:
    assert coarsest(weights, cache) == expected

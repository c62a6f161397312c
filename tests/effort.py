"""How much the tests try: what stands for the rest in `make test`, all of it in `make test-all`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import pytest

Case = TypeVar("Case")
_PART = 4
_divisor = _PART


def set_effort(*, everything: bool) -> None:
    """To be called before test modules are imported: how many examples are drawn is settled there."""
    global _divisor
    _divisor = 1 if everything else _PART


def examples(number: int) -> int:
    """Of `number` examples, those that are tried."""
    return max(1, number // _divisor)


def slow_but(fast: Iterable[Case], cases: Iterable[Case]) -> list[Any]:
    """Cases for `parametrize`, of which only some, that stand for the others, run in `make test`.

    Raises:
        ValueError: one of the fast ones is no case.
    """
    cases, fast = list(cases), list(fast)
    for each in fast:
        if each not in cases:
            raise ValueError(f"{each!r} is not among {cases}")
    return [pytest.param(case, marks=[] if case in fast else pytest.mark.slow) for case in cases]

"""A step that failed, row by row: so that a request that breaks the step takes no other with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bento_kv.contract.plan import StepPlan, StepRow


@dataclass(frozen=True, slots=True)
class Salvage:
    """What is left of a step that failed.

    Attributes:
        plan: the rows that could be computed alone, in their order; perhaps none.
        logits: of `plan`, by row.
        failed: why the others could not, by slot.
    """

    plan: StepPlan
    logits: Sequence[NDArray[np.float32]]
    failed: Mapping[int, Exception]


def each_alone(compute: Callable[[StepPlan], Sequence[NDArray[np.float32]]], plan: StepPlan) -> Salvage:
    """Compute each row of a plan in a step of its own; `compute` gives logits by row.

    A step that failed may have written any part of its rows' own positions. Trying again writes all of them, and what
    stands before them was not touched; and since a row's bits do not depend on its neighbours, what comes out is what
    the step would have given. A row in a step of its own needs the least memory that it can, so this also gets most
    requests through a shortage of it.
    """
    rows: list[StepRow] = []
    logits: list[NDArray[np.float32]] = []
    failed: dict[int, Exception] = {}
    for row in plan.rows:
        try:
            logits.extend(compute(StepPlan((row,))))
            rows.append(row)
        except Exception as error:  # noqa: BLE001 - it becomes the end of the row's request
            failed[row.slot] = error
    return Salvage(StepPlan(tuple(rows)), logits, failed)

"""A step trace: what a generation loop fed and took at every step, as JSON Lines that any language can print.

Required on every line are `step`, `input_ids` and `past_length`; the rest sharpens the verdict. docs/reference/traces.md has the
format in full, and the few lines that print it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

Rows = tuple[tuple[int, ...], ...]
Top = tuple[tuple[tuple[int, float], ...], ...]


@dataclass(frozen=True, slots=True)
class TraceStep:
    """One step of a loop. None stands for what the trace does not say.

    Attributes:
        step: its number, from 0.
        input_ids: `[rows, tokens]`.
        past_length: positions in the cache that went in.
        position_ids: `[rows, tokens]`.
        attention_mask_length: length of the mask's last axis.
        present_length: positions in the cache that the loop took out of the step; 0 where it took none.
        next_token: the token that the loop went on with, by row; None for a chunk of a prompt that is not its last.
        logits_top: by row, the likeliest tokens and their raw logits, where `next_token` was chosen.
        past_sum: the sum of all values by layer and side, `[k0, v0, k1, v1, ...]`, of the cache that went in.
        present_sum: the same of the cache that came out.
    """

    step: int
    input_ids: Rows
    past_length: int
    position_ids: Rows | None = None
    attention_mask_length: int | None = None
    present_length: int | None = None
    next_token: tuple[int, ...] | None = None
    logits_top: Top | None = None
    past_sum: tuple[float, ...] | None = None
    present_sum: tuple[float, ...] | None = None

    @property
    def rows(self) -> int:
        return len(self.input_ids)

    @property
    def width(self) -> int:
        """Tokens a row."""
        return len(self.input_ids[0])

    @property
    def ids(self) -> NDArray[np.int64]:
        """`[rows, tokens]`."""
        return np.array(self.input_ids, dtype=np.int64)

    def to_json(self) -> str:
        """The step as one line, without its newline."""
        record = {name: value for name, value in asdict(self).items() if value is not None}
        if self.rows == 1:
            record.update({name: record[name][0] for name in ("next_token", "logits_top") if name in record})
        return json.dumps(record)


@dataclass(frozen=True, slots=True)
class Trace:
    """A run from its step 0; all steps have the same number of rows."""

    steps: tuple[TraceStep, ...]
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        return self.steps[0].rows


def cache_sums(cache: Sequence[tuple[NDArray[np.generic], NDArray[np.generic]]]) -> tuple[float, ...]:
    """`[k0, v0, k1, v1, ...]`, summed in double precision."""
    return tuple(float(np.sum(side, dtype=np.float64)) for layer in cache for side in layer)

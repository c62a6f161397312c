"""A step trace: what a generation loop fed and took at every step, as JSON Lines that any language can print.

Required on every line are `step`, `input_ids` and `past_length`; the rest sharpens the verdict. docs/reference/traces.md has the
format in full, and the few lines that print it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from bento_kv.errors import TraceError
from bento_kv.runtime.graph import Cache, CachedGraph, cache_length

TOP = 5
# A trace is read to be judged, not to be archived: forty steps say all there is to say.
MAX_STEPS = 10_000
MAX_LINE = 16 * 2**20  # characters
MAX_TOTAL = 256 * 2**20
_MAX_INT = 2**31 - 1
_MAX_FLOAT = 10**300

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


def read_trace(source: Path | str | TextIO) -> Trace:
    """Read a file or a text stream.

    Raises:
        TraceError: it is no trace, or not from the beginning.
    """
    name = str(source) if isinstance(source, (str, Path)) else "the trace"
    steps: list[TraceStep] = []
    unknown: dict[str, int] = {}
    try:
        with _open(source) as stream:
            for number, text in _lines(stream, name):
                steps.append(_step(text, number, steps, unknown))
    except OSError as error:
        raise TraceError(f"{name} cannot be read: {error.strerror or error}") from error
    except UnicodeError as error:
        raise TraceError(f"{name} is not UTF-8 text; write the trace as JSON Lines in UTF-8") from error
    if not steps:
        raise TraceError(f"{name} is empty: print one JSON object a line and step, from step 0 on")
    notes = [
        f"field `{_writable(field)}` is not part of the format, ignored (line {at})" for field, at in unknown.items()
    ]
    return Trace(tuple(steps), tuple(notes))


def _writable(text: str) -> str:
    """JSON may escape halves of characters, which no encoding can write."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _open(source: Path | str | TextIO) -> Any:
    if not isinstance(source, (str, Path)):
        return nullcontext(source)
    path = Path(source)
    with path.open("rb") as file:
        head = file.read(4096)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise TraceError(f"{path} is UTF-16, as some shells write redirected output; write it in UTF-8")
    if b"\0" in head:
        raise TraceError(f"{path} is a binary file, not a trace: a trace is JSON Lines, one step a line")
    return path.open(encoding="utf-8-sig")


def _lines(stream: TextIO, name: str) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1."""
    number = total = 0
    while text := stream.readline(MAX_LINE + 1):
        number += 1
        text = text.removeprefix("\ufeff") if number == 1 else text
        total += len(text)
        if len(text) > MAX_LINE or total > MAX_TOTAL:
            raise TraceError(f"{name}, line {number}: too long for a trace; trace a shorter prompt, or fewer steps")
        if "\0" in text:
            raise TraceError(f"{name} is binary, not a trace: a trace is JSON Lines, one step a line")
        if text.strip():
            yield number, text


def _step(text: str, number: int, before: Sequence[TraceStep], unknown: dict[str, int]) -> TraceStep:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TraceError(
            f"line {number} is not JSON ({error}); a trace has one JSON object a line and nothing between them: "
            "print it to a file of its own, and drop a line that was cut off"
        ) from error
    if not isinstance(record, dict):
        raise TraceError(f"line {number} is not a JSON object; print one object a step")
    for field in record.keys() - TraceStep.__dataclass_fields__.keys():
        unknown.setdefault(str(field), number)
    step = _Line(record, number).read()
    _check_order(step, number, before)
    return step


def _check_order(step: TraceStep, number: int, before: Sequence[TraceStep]) -> None:
    if len(before) >= MAX_STEPS:
        raise TraceError(f"line {number}: more than {MAX_STEPS} steps; trace a shorter run, 40 steps are plenty")
    if step.step != len(before):
        if not before:
            remedy = "the trace has to begin with step 0, the prompt: print every step from the first one on"
        elif step.step == 0:
            remedy = "a second run begins here: keep one run a file"
        else:
            remedy = "print every step once, in order"
        raise TraceError(f"line {number}: `step` is {step.step}, expected {len(before)}; {remedy}")
    if before and step.rows != before[0].rows:
        raise TraceError(
            f"line {number}: `input_ids` has {step.rows} rows, step 0 has {before[0].rows}; "
            "trace a run whose rows stay the same"
        )


class _Line:
    """One line's fields, checked."""

    def __init__(self, record: dict[str, Any], number: int) -> None:
        self._record = record
        self._number = number

    def read(self) -> TraceStep:
        for field in ("step", "input_ids", "past_length"):
            if self._record.get(field) is None:
                raise self._wrong(field, "is missing", "`step`, `input_ids` and `past_length` stand on every line")
        ids = self._rows("input_ids", low=0)
        rows, width = len(ids), len(ids[0])
        positions = self._rows("position_ids", low=-1) if self._has("position_ids") else None
        if positions is not None:
            # One row of positions for all rows is how many programs feed them.
            positions = positions * rows if len(positions) == 1 else positions
            if len(positions) != rows or len(positions[0]) != width:
                raise self._wrong(
                    "position_ids", f"is not [{rows}, {width}] as `input_ids` is", "one position a token, row by row"
                )
        return TraceStep(
            step=self._count("step"),
            input_ids=ids,
            past_length=self._count("past_length"),
            position_ids=positions,
            attention_mask_length=self._optional_count("attention_mask_length"),
            present_length=self._optional_count("present_length"),
            next_token=self._next_token(rows),
            logits_top=self._logits_top(rows),
            past_sum=self._sums("past_sum"),
            present_sum=self._sums("present_sum"),
        )

    def _has(self, field: str) -> bool:
        return self._record.get(field) is not None

    def _wrong(self, field: str, what: str, remedy: str) -> TraceError:
        return TraceError(f"line {self._number}: `{field}` {what}; {remedy}")

    def _integer(self, field: str, value: Any, low: int = 0) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= _MAX_INT:
            remedy = f"write a whole number from {low} on, without quotes"
            raise self._wrong(field, f"has {json.dumps(value)[:40]}", remedy)
        return value

    def _count(self, field: str) -> int:
        return self._integer(field, self._record[field])

    def _optional_count(self, field: str) -> int | None:
        return self._count(field) if self._has(field) else None

    def _list(self, field: str, value: Any, remedy: str) -> list[Any]:
        if not isinstance(value, list) or not value:
            raise self._wrong(field, "is not a list, or is empty", remedy)
        return value

    def _rows(self, field: str, *, low: int) -> Rows:
        remedy = "write rows of numbers, [[5, 6, 7]] for one row"
        rows = [self._list(field, row, remedy) for row in self._list(field, self._record[field], remedy)]
        if len({len(row) for row in rows}) > 1:
            raise self._wrong(field, "has rows of different lengths", "print the tensor as it is fed, padding included")
        return tuple(tuple(self._integer(field, value, low) for value in row) for row in rows)

    def _next_token(self, rows: int) -> tuple[int, ...] | None:
        if not self._has("next_token"):
            return None
        value = self._record["next_token"]
        tokens = value if isinstance(value, list) else [value]
        if len(tokens) != rows:
            raise self._wrong("next_token", f"has {len(tokens)} for {rows} rows", "write one token a row, as a list")
        return tuple(self._integer("next_token", token) for token in tokens)

    def _logits_top(self, rows: int) -> Top | None:
        if not self._has("logits_top"):
            return None
        remedy = "write pairs, [[id, logit], ...]; for several rows one list of pairs a row"
        value = self._list("logits_top", self._record["logits_top"], remedy)
        first = self._list("logits_top", value[0], remedy)
        by_row = value if isinstance(first[0], list) else [value]
        if len(by_row) != rows:
            raise self._wrong("logits_top", f"is for {len(by_row)} rows, `input_ids` has {rows}", remedy)
        return tuple(
            tuple(self._pair(pair, remedy) for pair in self._list("logits_top", row, remedy)) for row in by_row
        )

    def _pair(self, pair: Any, remedy: str) -> tuple[int, float]:
        if not isinstance(pair, list) or len(pair) != 2:
            raise self._wrong("logits_top", "is not made of pairs", remedy)
        return self._integer("logits_top", pair[0]), self._number_of("logits_top", pair[1])

    def _number_of(self, field: str, value: Any) -> float:
        if isinstance(value, int) and abs(value) > _MAX_FLOAT:  # no float is as large
            value = math.inf
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            remedy = "write finite numbers; where the model gives NaN or infinity, diagnose its export first"
            raise self._wrong(field, f"has {json.dumps(value)[:40]}", remedy)
        return float(value)

    def _sums(self, field: str) -> tuple[float, ...] | None:
        if not self._has(field):
            return None
        remedy = "write one number a layer and side, [k0, v0, k1, v1, ...]"
        return tuple(self._number_of(field, value) for value in self._list(field, self._record[field], remedy))


def cache_sums(cache: Cache) -> tuple[float, ...]:
    """`[k0, v0, k1, v1, ...]`, summed in double precision."""
    return tuple(float(side.sum(dtype=np.float64)) for layer in cache for side in layer)


def golden_trace(graph: CachedGraph, prompt_ids: Sequence[int], steps: int) -> Iterator[TraceStep]:
    """The loop as it has to be, greedy, for one row: step 0 feeds the prompt, every later step one token.

    Args:
        steps: how many, step 0 among them.

    Raises:
        DecoderError: the runtime refuses, or fails.
    """
    ids, past = np.array([prompt_ids], dtype=np.int64), graph.empty_cache(1)
    for number in range(steps):
        length = cache_length(past)
        positions = np.arange(length, length + ids.shape[1], dtype=np.int64)[None]
        output = graph.run(ids, past, positions=positions if graph.takes_positions else None)
        logits = output.logits[0, -1]
        top = np.argsort(-logits, kind="stable")[:TOP]
        yield TraceStep(
            step=number,
            input_ids=(tuple(ids[0].tolist()),),
            past_length=length,
            position_ids=(tuple(positions[0].tolist()),),
            attention_mask_length=length + ids.shape[1],
            present_length=cache_length(output.present),
            next_token=(int(top[0]),),
            logits_top=(tuple((int(token), float(logits[token])) for token in top),),
            past_sum=cache_sums(past),
            present_sum=cache_sums(output.present),
        )
        ids, past = top[None, :1].astype(np.int64), output.present

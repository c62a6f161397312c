"""Reads the trace that a program printed, strictly: what is wrong is named by its line, its field and a remedy."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TextIO

from bento_kv.doctor.loop.trace import Rows, Top, Trace, TraceStep
from bento_kv.errors import TraceError

# A trace is read to be judged, not to be archived: forty steps say all there is to say.
MAX_STEPS = 10_000
MAX_LINE = 16 * 2**20  # characters
MAX_TOTAL = 256 * 2**20
_MAX_INT = 2**31 - 1
_MAX_FLOAT = 10**300


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

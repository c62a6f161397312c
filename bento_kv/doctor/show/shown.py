"""What the text and the page of a diagnosis have in common: its words, its numbers, and which steps are shown."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable
from itertools import groupby
from typing import Any, NamedTuple

from bento_kv.doctor.faults import FAULTS
from bento_kv.doctor.records import Diagnosis, LoopStep, Measurements, Verdict

_VERDICTS: dict[Verdict, str] = {"right": "is right", "wrong": "is wrong", "unknown": "could not be tried"}
_BOTH: dict[Verdict, str] = {
    "right": "the export and the loop are right",
    "wrong": "the export and the loop are wrong",
    "unknown": "neither the export nor the loop could be tried",
}
_PLANS = {1: "the loop (plan 1)", 2: "the export (plan 2)"}
_PROGRAMS = ("bento-kv", "bentoml", "pip", "python", "make")
# Control and format characters move the cursor, hide text or turn its direction; the rest break lines or encodings.
_HARMFUL = ("Cc", "Cf", "Cs", "Zl", "Zp")
# A run of like steps keeps its ends; a fault is shown longer, because it is what one looks for.
_RIGHT_ENDS, _WRONG_ENDS, _MOST = (3, 2), (10, 2), 64
_FEWEST = 8  # a gap that hides fewer is not worth it


class Cell(NamedTuple):
    """A length or shape of a step, and what it should have been where that differs."""

    name: str
    value: str
    expected: str | None


class Gap(NamedTuple):
    """Steps that are left out between two that are shown."""

    first: int
    last: int
    wrong: int  # how many of them are wrong

    @property
    def words(self) -> str:
        count = self.last - self.first + 1
        kind = {0: "as they should be", count: "all wrong"}.get(self.wrong, f"{self.wrong} of them wrong")
        return f"steps {self.first} to {self.last}: {count} more, {kind}"


def headline(diagnosis: Diagnosis) -> tuple[str, str]:
    """What is the matter, and what to do about it: a sentence each, the first without a capital."""
    export, loop = diagnosis.export.verdict, diagnosis.loop.verdict
    state = _BOTH[export] if export == loop else f"the export {_VERDICTS[export]}, the loop {_VERDICTS[loop]}"
    if diagnosis.plan:
        remedy = f"Mend {', then '.join(_PLANS[plan] for plan in diagnosis.plan)}."
    else:
        # Never more than was looked at.
        reach = diagnosis.measurements.reach
        far = f", up to position {reach.extent}" if reach else ""
        remedy = (
            f"There is nothing to mend{far}."
            if export == loop == "right" and reach
            else f"Nothing was found to mend{far}."
        )
    return f"{state}.", remedy


def is_command(line: str) -> bool:
    """Whether a line of the to-do list is to be typed rather than read."""
    return line.split(" ", 1)[0] in _PROGRAMS


def harmless(diagnosis: Diagnosis, encoding: str = "utf-8") -> Diagnosis:
    """The same diagnosis with what a terminal or a browser would obey, or `encoding` cannot carry, spelled out.

    Names come out of files that anybody may have written: an escape sequence becomes the characters `\\x1b[...`.
    An infinity becomes None, as what is not a number is.
    """
    return Diagnosis.model_validate(_spelled(diagnosis.model_dump(by_alias=True), encoding))


def beyond(error: float | None, limit: float | None) -> bool:
    """Whether an error is more than it may be; what is not a number always is."""
    return error is None or (limit is not None and error > limit)


def number(value: float | None) -> str:
    """An error in two digits; what is not a number is None in a diagnosis."""
    if value is None:
        return "NaN"
    if value == 0 or 0.01 <= value < 1000:
        return f"{value:.2g}" if value < 100 else f"{value:.0f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def worst(measured: Measurements) -> dict[str, str]:
    """The largest error of the logits, the keys and the values, with its place; what is not a number is the largest."""
    places = {
        "logits": [(step.logits, f"step {step.step}") for step in measured.steps],
        "keys": _placed((step.step, step.keys) for step in measured.steps),
        "values": _placed((step.step, step.values) for step in measured.steps),
    }
    return {name: _largest(errors, measured.limit) for name, errors in places.items() if errors}


def cells(step: LoopStep) -> tuple[Cell, ...]:
    """What a step was fed and gave, beside what it should have been where it was found wrong.

    Mask and positions depend on padding and on buffers of a fixed length, so they are held against past and tokens only
    where the finding is about them.
    """
    rows, tokens = step.input_ids
    past, total = step.expected_past_length, step.expected_past_length + step.expected_tokens
    wrong, compared = bool(step.findings), {FAULTS[id].shows for id in step.findings}
    return (
        _cell("input_ids", _shape(rows, tokens), _shape(rows, step.expected_tokens), wrong),
        _cell("past", str(step.past_length), str(past), wrong),
        _cell("mask", _length(step.attention_mask_length), str(total), "mask" in compared),
        _cell("positions", _span(step.position_ids), _span((past, total - 1)), "positions" in compared),
        Cell("present", _length(step.present_length), None),
    )


def selected(steps: tuple[LoopStep, ...]) -> list[LoopStep | Gap]:
    """The steps worth showing: the ends of each run of like steps, and a gap for what lies between."""
    chosen: list[LoopStep | Gap] = []
    for findings, run in groupby(steps, key=lambda step: step.findings):
        chosen += _shortened(list(run), *(_WRONG_ENDS if findings else _RIGHT_ENDS))
    if len(chosen) <= _MOST:
        return chosen
    # So many short runs: the first tell the story.
    kept, last = chosen[: _MOST - 2], steps[-1]
    end = kept[-1].last if isinstance(kept[-1], Gap) else kept[-1].step
    return [*kept, _gap([step for step in steps if step.step > end and step is not last]), last]


def _placed(steps: Iterable[tuple[int, tuple[float | None, ...]]]) -> list[tuple[float | None, str]]:
    return [(error, f"step {step}, layer {layer}") for step, errors in steps for layer, error in enumerate(errors)]


def _largest(errors: list[tuple[float | None, str]], limit: float | None) -> str:
    error, place = max(errors, key=lambda pair: math.inf if pair[0] is None else pair[0])
    over = sum(beyond(error, limit) for error, _ in errors)
    if error == 0:
        return "0 everywhere"
    kind = "not a number" if limit is None else "over the limit"
    count = f"; {over} of {len(errors)} {kind}" if over else ""
    return f"{number(error)} at {place}{count}"


def _shortened(run: list[LoopStep], head: int, tail: int) -> list[LoopStep | Gap]:
    if len(run) < head + tail + _FEWEST:
        return list(run)
    return [*run[:head], _gap(run[head : len(run) - tail]), *run[len(run) - tail :]]


def _gap(steps: list[LoopStep]) -> Gap:
    return Gap(steps[0].step, steps[-1].step, sum(bool(step.findings) for step in steps))


def _cell(name: str, value: str, expected: str, compared: bool) -> Cell:
    return Cell(name, value, expected if compared and value not in (expected, "-") else None)


def _shape(rows: int, tokens: int) -> str:
    return f"[{rows}, {tokens}]"


def _length(length: int | None) -> str:
    return "-" if length is None else str(length)


def _span(span: tuple[int, int] | None) -> str:
    if span is None:
        return "-"
    return str(span[0]) if span[0] == span[1] else f"{span[0]}..{span[1]}"


def _spelled(value: Any, encoding: str) -> Any:
    if isinstance(value, str):
        plain = "".join(_spell(char) if unicodedata.category(char) in _HARMFUL else char for char in value)
        return plain.encode(encoding, "backslashreplace").decode(encoding)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_spelled(key, encoding): _spelled(item, encoding) for key, item in value.items()}
    return [_spelled(item, encoding) for item in value] if isinstance(value, tuple | list) else value


def _spell(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")

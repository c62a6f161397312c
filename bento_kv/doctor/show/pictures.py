"""The pictures of a diagnosis as geometry, for pictures.html to draw.

They are placed in percent across and in pixels down, so that they fill any width and keep their letters' size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from bento_kv.doctor.records import LoopStep, Measurements, StepError
from bento_kv.doctor.show.shown import Cell, Gap, beyond, cells, number, selected, worst

_LEFT = 7.0  # percent of a heat map that its layer numbers take
_CELLS = 4096  # of one heat map and its twin; beyond that a column is the worst of several steps
_DECADES = 4  # the colour scale spans as many decades on either side of the limit
_PLOT = (14.0, 96.0)  # percent of the chart where its first and last step stand
_CHART_TOP, _CHART_HEIGHT = 14, 168


class Tile(NamedTuple):
    """A cell of a heat map, in percent across and pixels down; `shade` is its colour's class."""

    x: float
    y: float
    width: float
    height: float
    shade: str
    title: str
    text: str
    over: bool


class HeatMap(NamedTuple):
    side: str
    tiles: tuple[Tile, ...]
    dense: bool  # too many columns for lines between them
    rows: tuple[tuple[float, str], ...]
    columns: tuple[tuple[float, str], ...]
    height: int
    title: str
    desc: str


class Colours(NamedTuple):
    """`top` is where the colours change: the limit, or without one above 0 the largest error."""

    top: float
    below: str  # the shades up to there: "in", or "over" where nothing but 0 is within the limit


class Swatch(NamedTuple):
    shade: str
    label: str
    at_limit: bool


class Dot(NamedTuple):
    x: float
    y: float
    title: str
    over: bool
    nan: bool


class Chart(NamedTuple):
    dots: tuple[Dot, ...]
    grid: tuple[tuple[float, str], ...]
    columns: tuple[tuple[float, str], ...]
    limit: tuple[float, str] | None
    height: int
    title: str
    desc: str


class Bar(NamedTuple):
    """The positions that a step's attention saw, in percent of the longest step: cached ones, then new ones."""

    past: float
    tokens: float


class Box(NamedTuple):
    step: LoopStep
    cells: tuple[Cell, ...]
    fed: Bar
    expected: Bar
    title: str


def _errors(step: StepError, side: str) -> tuple[float | None, ...]:
    return step.keys if side == "keys" else step.values


def _rows(measured: Measurements, side: str) -> int:
    return max((len(_errors(step, side)) for step in measured.steps), default=0)


def sides(measured: Measurements) -> list[str]:
    """Those of which there are numbers."""
    return [side for side in ("keys", "values") if _rows(measured, side)]


def heat_map(side: str, measured: Measurements) -> HeatMap:
    """Layers down, steps across; of more steps than fit, a column is the worst of several."""
    rows = _rows(measured, side)
    each = math.ceil(len(measured.steps) / max(16, _CELLS // (2 * rows)))  # steps a column
    columns = [measured.steps[start : start + each] for start in range(0, len(measured.steps), each)]
    height = next(pixels for most, pixels in ((8, 26), (16, 18), (40, 11), (10**9, 7)) if rows <= most)
    width = (100 - _LEFT) / len(columns)
    colours = _colours(measured)
    tiles = tuple(
        _tile(column, layer, side, measured, colours, (_LEFT + width * at, height * layer, width, height))
        for at, column in enumerate(columns)
        for layer in range(rows)
        if any(layer < len(_errors(step, side)) for step in column)
    )
    shared = f"; a column is the worst of {each} steps" if each > 1 else ""
    return HeatMap(
        side,
        tiles,
        len(columns) > 32,
        tuple((height * (layer + 0.5), str(layer)) for layer in _ticks(rows, 8)),
        tuple((_LEFT + width * (at + 0.5), str(columns[at][0].step)) for at in _ticks(len(columns), 8)),
        height * rows,
        f"Error of the {side}, by layer and step",
        f"{rows} layers down, {len(measured.steps)} steps across{shared}. Largest: {worst(measured)[side]}.",
    )


def _tile(
    column: Sequence[StepError],
    layer: int,
    side: str,
    measured: Measurements,
    colours: Colours,
    place: tuple[float, float, float, float],
) -> Tile:
    errors = [_errors(step, side)[layer] for step in column if layer < len(_errors(step, side))]
    error = None if None in errors else max(error for error in errors if error is not None)
    steps = f"step {column[0].step}" if len(column) == 1 else f"steps {column[0].step} to {column[-1].step}"
    text = number(error) if len(measured.steps) <= 8 and place[3] >= 18 else ""
    over = beyond(error, measured.limit)
    said = f"{steps}, layer {layer}: {number(error)}" + (", over the limit" if over and error is not None else "")
    return Tile(*place, _shade(error, colours), said, text, over)


def _colours(measured: Measurements) -> Colours:
    if measured.limit:
        return Colours(measured.limit, "in")
    errors = (error for step in measured.steps for error in (*step.keys, *step.values) if error)
    return Colours(max(errors, default=1.0), "in" if measured.limit is None else "over")


def _shade(error: float | None, colours: Colours) -> str:
    """`in0` (nothing) to `in4` (within a decade under the limit), `over1` to `over4`, `nan`."""
    if error is None:
        return "nan"
    if error == 0:
        return "in0"
    decades = math.log10(error / colours.top)
    if decades <= 0:
        return f"{colours.below}{max(1, _DECADES - int(-decades))}"
    return f"over{min(_DECADES, 1 + int(decades))}"


def scale(measured: Measurements) -> list[Swatch]:
    """The colours of the heat maps, each with the error that it goes up to."""
    top, below = _colours(measured)
    decades = range(1, _DECADES + 1)
    swatches = [Swatch("in0", "0", measured.limit == 0)]
    swatches += [
        Swatch(f"{below}{at}", number(top * 10.0 ** (at - _DECADES)), top == measured.limit and at == _DECADES)
        for at in decades
    ]
    if measured.limit:
        swatches += [Swatch(f"over{at}", "more" if at == _DECADES else number(top * 10.0**at), False) for at in decades]
    return [*swatches, Swatch("nan", "NaN", False)]


def chart(measured: Measurements) -> Chart:
    """The logits' error by step on a log scale; nothing lies on the ground, what is not a number at the top."""
    errors = [step.logits for step in measured.steps]
    scaled = [error for error in (*errors, measured.limit) if error]
    low = math.floor(math.log10(min(scaled, default=1e-8))) - 1
    high = max(math.ceil(math.log10(max(scaled, default=1e-8))), low + 2) + (None in errors)  # a line of their own
    left, right = _PLOT
    spacing = (right - left) / max(1, len(errors) - 1)

    def down(error: float) -> float:
        return round(_CHART_TOP + _CHART_HEIGHT * (high - max(low, math.log10(error or 10.0**low))) / (high - low), 1)

    dots = tuple(
        Dot(
            left + spacing * at,
            _CHART_TOP if error is None else down(error),
            f"step {step.step}: {number(error)}",
            beyond(error, measured.limit),
            error is None,
        )
        for at, (step, error) in enumerate(zip(measured.steps, errors, strict=True))
    )
    every = math.ceil((high - low) / 6)
    powers = range(low + every, high + (None not in errors), every)
    grid = [(down(0), "0"), *((down(10.0**power), number(10.0**power)) for power in powers)]
    if None in errors:
        grid.append((_CHART_TOP, "NaN"))
    limit = (down(measured.limit), f"limit {number(measured.limit)}") if measured.limit is not None else None
    title = "Error of the logits, by step" + (", against the limit" if limit else "")
    columns = tuple((dots[at].x, str(measured.steps[at].step)) for at in _ticks(len(dots), 10))
    desc = f"{len(dots)} steps across, on a logarithmic scale. Largest: {worst(measured)['logits']}."
    return Chart(dots, tuple(grid), columns, limit, _CHART_TOP + _CHART_HEIGHT, title, desc)


def _ticks(count: int, most: int) -> range:
    """At most about `most` numbers under `count` places, evenly, in steps that one counts in."""
    every = next(size for size in (1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 64, 100, count) if count / size <= most)
    return range(0, count, max(1, every))


def strip(steps: tuple[LoopStep, ...]) -> list[Box | Gap]:
    """The steps that are shown, their bars to the scale of the longest step of all."""
    longest = max(
        (max(step.past_length + step.input_ids[1], step.expected_past_length + step.expected_tokens) for step in steps),
        default=0,
    )
    share = 100 / max(1, longest)
    return [shown if isinstance(shown, Gap) else _box(shown, share) for shown in selected(steps)]


def _box(step: LoopStep, share: float) -> Box:
    fed = f"{step.past_length} cached and {step.input_ids[1]} new"
    right = f"{step.expected_past_length} cached and {step.expected_tokens} new"
    return Box(
        step,
        cells(step),
        Bar(step.past_length * share, step.input_ids[1] * share),
        Bar(step.expected_past_length * share, step.expected_tokens * share),
        f"step {step.step}: {fed}" + (f", where it should have been {right}" if step.findings else ""),
    )

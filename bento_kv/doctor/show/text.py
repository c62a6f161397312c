"""A diagnosis as text: the verdict first, then what was found, then what to do."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from io import StringIO
from typing import NamedTuple, TextIO

from rich.box import Box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from bento_kv.doctor.faults import FAULTS
from bento_kv.doctor.records import Diagnosis, Finding, ItemState, LoopStep, PartDiagnosis, Verdict
from bento_kv.doctor.show.shown import (
    Cell,
    Gap,
    cells,
    harmless,
    headline,
    is_command,
    number,
    selected,
    worst,
)

_NARROWEST, _WIDEST = 40, 120
_STYLES = {"right": "green", "done": "green", "wrong": "red", "unknown": "yellow"}
_INDENT = (0, 0, 0, 2)
_STEP_COLUMNS = {"input_ids": "ids", "past": "past", "present": "present", "mask": "mask", "positions": "positions"}


class _Symbols(NamedTuple):
    right: str
    wrong: str
    unknown: str
    differs: str
    more: str
    rule: str

    def of(self, state: Verdict | ItemState) -> str:
        return {"wrong": self.wrong, "unknown": self.unknown}.get(state, self.right)


_UNICODE = _Symbols("✓", "✗", "?", "≠", "…", "─")
_ASCII = _Symbols("+", "x", "?", "!=", "...", "-")


class _Command(NamedTuple):
    """A line that is to be copied whole, so that no width breaks it."""

    line: str


def render(diagnosis: Diagnosis, *, colour: bool, width: int, encoding: str = "utf-8") -> str:
    """The diagnosis as text of at most `width` cells a line (never under 40); commands keep their own line.

    What a terminal would obey in a name is spelled out, and so is what `encoding` cannot carry.
    """
    symbols = _UNICODE if _carries(encoding, "".join(_UNICODE)) else _ASCII
    console = Console(
        file=StringIO(),
        width=max(width, _NARROWEST),
        color_system="standard" if colour else None,
        force_terminal=colour,
        force_jupyter=False,
        no_color=False,  # decided by the caller, not by the environment
        legacy_windows=False,
        markup=False,
        emoji=False,
        highlight=False,
    )
    with console.capture() as captured:
        for part in _parts(harmless(diagnosis, encoding), symbols):
            if isinstance(part, _Command):
                console.print(Text(f"     {part.line}", style="bold" if colour else ""), soft_wrap=True)
            else:
                console.print(part)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


def render_for(diagnosis: Diagnosis, stream: TextIO) -> str:
    """`render` as fits a stream: its encoding, a terminal's width, and colour on a terminal without NO_COLOR."""
    terminal = stream.isatty()
    colour = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    width = min(shutil.get_terminal_size((80, 24)).columns, _WIDEST) if terminal else 100
    return render(diagnosis, colour=colour, width=width, encoding=stream.encoding or "ascii")


def _carries(encoding: str, text: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _parts(diagnosis: Diagnosis, symbols: _Symbols) -> Iterator[RenderableType | _Command]:
    yield _verdict(diagnosis)
    yield ""
    yield _facts(_target(diagnosis))
    yield ""
    yield _verdicts(diagnosis, symbols)
    for name, part in diagnosis.parts.items():
        for count, finding in enumerate(part.findings):
            yield "" if count else _title(f"{name.capitalize()}: what is wrong")
            yield from _finding(finding, symbols)
    if numbers := _numbers(diagnosis):
        yield _title("Largest errors, cached against uncached")
        yield _facts(numbers)
    if diagnosis.measurements.reach is not None:
        yield _title("How far it looked")
        yield Padding(Text(diagnosis.measurements.reach.sentence), _INDENT)
    if diagnosis.measurements.loop:
        yield _title("Steps of the traced loop" if diagnosis.target.trace else "Steps of bento_kv's own loop")
        yield from _steps(diagnosis.measurements.loop, symbols)
    if diagnosis.checklist:
        yield _title("Checklist")
        for item in diagnosis.checklist:
            mark = Text(symbols.of(item.state), style=_STYLES[item.state])
            yield _hanging(mark, Text(item.text))
    if diagnosis.todo:
        yield _title("To do, in this order")
        yield from _todo(diagnosis)
    if diagnosis.notes:
        yield _title("Notes")
        yield from (_hanging(Text("-"), Text(note)) for note in diagnosis.notes)
    yield ""
    versions = ", ".join(f"{name} {version}" for name, version in diagnosis.versions.items())
    yield Text(f"Diagnosed in {diagnosis.seconds:.1f} s" + (f" with {versions}" if versions else ""), style="dim")


def _verdict(diagnosis: Diagnosis) -> Text:
    state, remedy = headline(diagnosis)
    verdicts = (diagnosis.export.verdict, diagnosis.loop.verdict)
    style = next((_STYLES[verdict] for verdict in ("wrong", "unknown") if verdict in verdicts), "green")
    return Text.assemble((f"{diagnosis.scenario}: ", f"bold {style}"), (state, f"bold {style}"), " ", (remedy, "bold"))


def _title(text: str) -> Text:
    return Text(f"\n{text}", style="bold")


def _target(diagnosis: Diagnosis) -> dict[str, str]:
    target = diagnosis.target
    opset = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in target.opset.items())
    facts = {
        "target": target.path,
        "layout": f"{target.layout} ({', '.join(target.graphs)})" if target.graphs else target.layout,
        "cache": f"{target.cache}, {_count(target.layers, 'layer')}" if target.cache else "",
        "precision": target.precision,
        "opset": opset + ("" if target.ir_version is None else f"; IR version {target.ir_version}"),
        "trace": target.trace or "",
        "reference": target.reference or "",
    }
    return {name: value for name, value in facts.items() if value}


def _numbers(diagnosis: Diagnosis) -> dict[str, str]:
    measured = diagnosis.measurements
    facts = worst(measured)
    if measured.limit is not None:
        facts["limit"] = number(measured.limit)
    if measured.reference is not None:
        facts["torch"] = f"{number(measured.reference)}, the logits against the reference"
    return facts


def _facts(facts: dict[str, str]) -> Padding:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    for name, value in facts.items():
        grid.add_row(name, Text(value))
    return Padding(grid, _INDENT)


def _verdicts(diagnosis: Diagnosis, symbols: _Symbols) -> Padding:
    table = _table(symbols, "Layer", "Verdict", "Found")
    for name, part in diagnosis.parts.items():
        verdict = Text(f"{symbols.of(part.verdict)} {part.verdict}", style=f"bold {_STYLES[part.verdict]}")
        table.add_row(name, verdict, Text(_found(part)))
    return Padding(table, _INDENT)


def _found(part: PartDiagnosis) -> str:
    if part.findings:
        return ", ".join(dict.fromkeys(finding.id for finding in part.findings))
    return "could not be tried" if part.verdict == "unknown" else "nothing"


def _finding(finding: Finding, symbols: _Symbols) -> Iterator[RenderableType]:
    name = Text.assemble((finding.id, "bold red"), (f": {FAULTS[finding.id].matter}", "bold"))
    yield _hanging(Text(symbols.wrong, style="red"), name)
    told = {"where": finding.where, "what": finding.explain, "fix": finding.fix}
    yield Padding(_facts({name: text for name, text in told.items() if text}), _INDENT)


def _hanging(mark: Text, text: Text) -> Padding:
    """A mark, and the text beside it with its further lines under its first."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(mark, text)
    return Padding(grid, _INDENT)


def _todo(diagnosis: Diagnosis) -> Iterator[RenderableType | _Command]:
    count = 0
    for line in diagnosis.todo:
        if is_command(line):
            yield _Command(line)
            continue
        count += 1
        yield _hanging(Text(f"{count}."), Text(line))


def _steps(steps: tuple[LoopStep, ...], symbols: _Symbols) -> Iterator[RenderableType]:
    found = list(dict.fromkeys(name for step in steps for name in step.findings))
    told = {cell.name for step in steps for cell in cells(step) if cell.value != "-"}
    names = [name for name in _STEP_COLUMNS if name in told]
    table = _table(symbols, "Step", *(_STEP_COLUMNS[name] for name in names), *(["Found"] if found else []))
    notes = [(symbols.differs, "stands before what it should have been")] if found else []
    notes += [(f"#{count}", name) for count, name in enumerate(found, start=1)]
    for shown in selected(steps):
        if isinstance(shown, Gap):
            table.add_row(f"  {symbols.more}")
            notes.append((symbols.more, shown.words))
            continue
        by_name = {cell.name: cell for cell in cells(shown)}
        row = [_compared(by_name[name], symbols) for name in names]
        mark = Text(f"{symbols.wrong} {shown.step}", style="red") if shown.findings else Text(f"  {shown.step}")
        numbers = " ".join(f"#{found.index(name) + 1}" for name in shown.findings)
        table.add_row(mark, *row, *([Text(numbers, style="red")] if found else []))
    yield Padding(table, _INDENT)
    for name, text in notes:
        yield _hanging(Text(name, style="dim"), Text(text, style="dim"))


def _compared(cell: Cell, symbols: _Symbols) -> Text:
    if cell.expected is None:
        return Text(cell.value)
    return Text.assemble((cell.value, "red"), f" {symbols.differs} ", (cell.expected, "green"))


def _table(symbols: _Symbols, *columns: str) -> Table:
    rule = symbols.rule
    blank = "    \n"
    box = Box(blank * 2 + f" {rule}{rule} \n" + blank * 4 + "    ", ascii=rule == "-")
    table = Table(box=box, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"

"""Tables of a run, and a plot.

    python -m benchmarks.report FILE [--plot FILE.svg] [--keep]

Prints markdown: every engine's speed beside the limit that memory sets, then ours over theirs. `--keep` puts a small table
and the plot into benchmarks/results, for the README.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from benchmarks.limit import step_bytes
from benchmarks.results import Record, Row
from benchmarks.shapes import SHAPES

OURS = "bento_kv"
Key = tuple[str, int, int]  # phase, rows, context


def report(record: Record) -> str:
    """The whole report as markdown."""
    parts = [_circumstances(record)]
    for model in dict.fromkeys(row.model for row in record.rows):
        rows = [row for row in record.rows if row.model == model]
        parts += [
            f"## {SHAPES[model].name}'s shape",
            "Tokens a second, medians, with lowest to highest.",
            _speeds(record, model, rows),
            *_ratios(rows),
            "Ready to compute:",
            _loaded(record, model),
        ]
    for title, notes in (("Left out", record.left_out), ("Failed", record.failed)):
        if notes:
            parts += [f"## {title}", "\n".join(f"- {what}: {why}" for what, why in notes.items())]
    return "\n\n".join(parts)


def limit(record: Record, model: str, precision: str, key: Key, bandwidth: str) -> float | None:
    """Tokens a second of a decode step that does nothing but read; None in prefill, which computes."""
    phase, rows, context = key
    if phase == "prefill":
        return None
    return rows * record.bandwidth[bandwidth] / step_bytes(SHAPES[model], precision, rows, context)


def plotted(record: Record, file: Path) -> str:
    """Plot to a file, where matplotlib is installed: what came of it."""
    if find_spec("matplotlib") is None:
        return "no plot, because matplotlib is not installed: pip install '.[bench]'"
    from benchmarks.plot import plot  # it imports matplotlib

    plot(record, file)
    return f"plotted to {file}"


def _circumstances(record: Record) -> str:
    read, small, copy = (record.bandwidth[name] / 1e9 for name in ("read", "read_small", "copy"))
    versions = dict(pair for loaded in record.loaded for pair in loaded.versions.items())
    return (
        f"{record.created}, {record.machine['processor']}, {record.threads} threads, medians of up to {record.rounds} "
        f"rounds in turns. Memory, with as many threads: {read:.1f} GB/s read from a buffer beyond all caches, {small:.1f} "
        f"from one of 64 MiB that may stay in one, {copy:.1f} copied (bytes read and written added). Other processes used {_other(record)}.\n\n"
        + ", ".join(f"{package} {number}" for package, number in versions.items())
        + "."
    )


def _other(record: Record) -> str:
    loads = record.other_load.values()
    return f"{statistics.mean(loads):.2f} cores meanwhile, {max(loads):.2f} at most" if loads else "nothing"


def _speeds(record: Record, model: str, rows: list[Row]) -> str:
    keys = list(dict.fromkeys(_key(row) for row in rows))
    by = {(row.engine, _key(row)): row for row in rows}
    lines = []
    for engine in dict.fromkeys(row.engine for row in rows):
        cells = [by.get((engine, key)) for key in keys]
        lines.append([engine, *("" if row is None else _speed(row) for row in cells)])
    for precision in dict.fromkeys(row.precision for row in rows):
        for bandwidth, where in (("read", "memory"), ("read_small", "cache")):
            limits = [limit(record, model, precision, key, bandwidth) for key in keys]
            lines.append(
                [f"*limit, {precision}, {where}*", *("" if each is None else f"*{each:.0f}*" for each in limits)]
            )
    return table(["engine", *map(_title, keys)], lines)


def _speed(row: Row) -> str:
    few = ", once" if row.rounds == 1 else ""
    return f"{_short(row.median)} ({_short(row.minimum)} to {_short(row.maximum)}{few})"


def _short(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 20 else f"{rate:.1f}"


def _ratios(rows: list[Row]) -> list[str]:
    """For each of ours that was measured, its speed over each peer's."""
    by = {(row.engine, _key(row)): row.median for row in rows}
    keys = [key for key in dict.fromkeys(_key(row) for row in rows) if key[2] != 32 and key[1] != 2]
    engines = list(dict.fromkeys(row.engine for row in rows))
    parts = []
    for ours in (engine for engine in engines if engine.startswith(OURS)):
        lines = []
        for peer in (engine for engine in engines if not engine.startswith(OURS)):
            pairs = [(by.get((ours, key)), by.get((peer, key))) for key in keys]
            lines.append([peer, *(f"{mine / theirs:.2f}" if mine and theirs else "" for mine, theirs in pairs)])
        if lines:
            parts += [f"{ours} over:", table(["", *map(_title, keys)], lines)]
    return parts


def _loaded(record: Record, model: str) -> str:
    lines = [
        [
            each.engine,
            f"{each.load_seconds:.1f} s",
            f"{each.resident_mib:.0f} MiB",
            f"{each.peak_mib:.0f} MiB",
            f"{each.idle_load:.0%}",
        ]
        for each in record.loaded
        if each.model == model
    ]
    return table(["engine", "load", "resident after a first prompt", "highest", "of a core while idle"], lines)


def _key(row: Row) -> Key:
    return row.phase, row.rows, row.context


def _title(key: Key) -> str:
    phase, rows, context = key
    return f"prefill {context}" if phase == "prefill" else f"x{rows} at {context}"


def table(head: list[str], lines: Iterable[list[str]]) -> str:
    """As markdown."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="a result of python -m benchmarks")
    parser.add_argument("--plot", type=Path, help="where to; beside the result unless set")
    parser.add_argument("--keep", action="store_true", help="also write the table and the plot to benchmarks/results")
    options = parser.parse_args()
    if not options.file.is_file():
        print(f"{options.file} is not a file; python -m benchmarks writes one", file=sys.stderr)
        return 2
    record = Record.read(options.file)
    print(report(record))
    kept = record.keep().with_suffix(".png") if options.keep else None
    print(plotted(record, options.plot or kept or options.file.with_suffix(".svg")), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

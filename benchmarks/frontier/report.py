"""Tables of a frontier, and a plot.

    python -m benchmarks.frontier.report FILE [--plot FILE.svg] [--keep]

`--keep` puts a table of all cells (CSV) and the plot into benchmarks/results, and the tables between the two marks in
benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import csv
import sys
import textwrap
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

from benchmarks.frontier.results import Frontier, fastest_as_faithful, unbeaten
from benchmarks.report import OURS, table
from benchmarks.results import KEPT

WIDTH = 100  # of lines of a page, but for tables
README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- frontier: begin -->", "<!-- frontier: end -->"


def report(found: Frontier) -> str:
    """Everything as markdown."""
    parts = [_circumstances(found), contenders(found)]
    if found.record.rows:
        parts += [
            "Whom no other beats, the fastest first; nats a token in parentheses:",
            frontiers(found),
            "Ours over each peer in tokens a second, the fastest of ours that loses no more than it:",
            ahead(found),
        ]
    if found.record.failed:
        parts += ["Failed:", "\n".join(f"- {what}: {why}" for what, why in found.record.failed.items())]
    return "\n\n".join(parts)


def contenders(found: Frontier) -> str:
    """A line a contender: size, memory, what it loses, how fast it is."""
    head = ["", "bits", "MiB", "KL, prompts", "KL, decode", "perplexity x", "same first"]
    head += [_title(*cell) for cell in found.cells]
    speeds = {cell: {point.contender: point.speed for point in found.points(*cell)} for cell in found.cells}
    lines = []
    for name, quality in found.quality.items():
        peak = found.peak_mib(name)
        decode = quality.decode
        lines.append(
            [
                f"**{name}**" if name.startswith(OURS) else name,
                f"{found.bits[name]:.1f}",
                "" if peak is None else f"{peak:.0f}",
                f"{quality.prefill.kl:.2g}",
                f"{decode.kl:.2g}",
                f"{decode.perplexity / decode.reference_perplexity:.3f}",
                f"{decode.agreement:.1%}",
                *(f"{speeds[cell][name]:.0f}" if name in speeds[cell] else "" for cell in found.cells),
            ]
        )
    return table(head, lines)


def frontiers(found: Frontier) -> str:
    """A line a cell: who is on its frontier."""
    lines = []
    for cell in found.cells:
        names = [f"{point.contender} ({point.kl:.2g})" for point in unbeaten(found.points(*cell))]
        lines.append([_title(*cell), ", ".join(names)])
    return table(["", "on the frontier"], lines)


def ahead(found: Frontier) -> str:
    """A line a peer: how much faster the fastest of ours is that loses no more."""
    lines = []
    for peer in (name for name in found.quality if not name.startswith(OURS)):
        line = [peer]
        for cell in found.cells:
            points = found.points(*cell)
            theirs = next((point for point in points if point.contender == peer), None)
            mine = [point for point in points if point.contender.startswith(OURS)]
            best = fastest_as_faithful(mine, theirs.kl) if theirs else None
            line.append(f"{best.speed / theirs.speed:.2f}" if best and theirs else "")
        lines.append(line)
    return table(["", *(_title(*cell) for cell in found.cells)], lines)


def write_csv(found: Frontier, path: Path) -> None:
    """A line a contender and cell; the first line has the circumstances."""
    with path.open("w", newline="") as file:
        file.write(f"# {found.record.created}, {found.record.machine['processor']}, {found.model}, {found.text}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            [
                "contender",
                "bits",
                "peak_mib",
                "phase",
                "rows",
                "tokens_per_second",
                "lowest",
                "highest",
                "kl",
                "kl_99",
                "perplexity_ratio",
                "same_first",
            ]
        )
        for phase, rows in found.cells:
            for point in found.points(phase, rows):
                phases = found.quality[point.contender]
                quality = phases.prefill if phase == "prefill" else phases.decode
                ratio = quality.perplexity / quality.reference_perplexity
                numbers = [point.speed, point.lowest, point.highest, quality.kl, quality.kl_99, ratio]
                peak = found.peak_mib(point.contender)
                writer.writerow(
                    [
                        point.contender,
                        f"{found.bits[point.contender]:.2f}",
                        "" if peak is None else f"{peak:.0f}",
                        phase,
                        rows,
                        *(f"{number:.4g}" for number in numbers),
                        f"{quality.agreement:.4f}",
                    ]
                )


def filled(page: str, text: str) -> str:
    """A page with a text between the marks.

    Raises:
        ValueError: the page lacks them.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no place between {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def _circumstances(found: Frontier) -> str:
    record = found.record
    machine = f"{record.machine['processor']}, {record.threads} threads"
    words = (
        f"{found.model}, {found.parameters / 1e6:.0f} million parameters. {record.created[:10]}, {machine}.",
        f"Tokens a second are medians of up to {record.rounds} rounds in turns.",
        f"Predictions are compared with transformers' in fp32 on {found.text}.",
        found.note,
    )
    return textwrap.fill(" ".join(filter(None, words)), WIDTH, break_long_words=False, break_on_hyphens=False)


def _title(phase: str, rows: int) -> str:
    return "prefill" if phase == "prefill" else f"x{rows}"


def _plotted(found: Frontier, file: Path) -> str:
    if find_spec("matplotlib") is None:
        return "no plot, because matplotlib is not installed: pip install '.[bench]'"
    from benchmarks.frontier.plot import plot  # it imports matplotlib

    plot(found, file)
    return f"plotted to {file}"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.frontier.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, help="a result of python -m benchmarks.frontier")
    parser.add_argument("--plot", type=Path, help="where to; beside the result unless set")
    parser.add_argument("--keep", action="store_true", help="write to benchmarks/results and benchmarks/README.md, too")
    options = parser.parse_args()
    if not options.file.is_file():
        print(f"{options.file} is not a file; python -m benchmarks.frontier writes one", file=sys.stderr)
        return 2
    found = Frontier.read(options.file)
    print(report(found))
    kept = KEPT / f"{datetime.fromisoformat(found.record.created):%Y-%m-%d}-frontier.csv"
    if options.keep:
        write_csv(found, kept)
        README.write_text(filled(README.read_text(), report(found)))
    place = kept.with_suffix(".png") if options.keep else options.file.with_suffix(".svg")
    print(_plotted(found, options.plot or place), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

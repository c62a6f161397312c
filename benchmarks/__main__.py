"""bento_kv beside other engines, on the same random weights with the same threads, in turns.

    python -m benchmarks [--models 135m,0.5b] [--engines bento_kv,llama.cpp,...] [--rounds 5] [--threads 2] [--quick]

Engines other than transformers are installed by `python -m benchmarks.peers.setup`; those that are not are named. The
results are a JSON file, tables and a plot; `python -m benchmarks.report FILE` makes the latter two again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import results
from benchmarks.bench import QUICK, WHOLE, Bench, tell
from benchmarks.catalogue import choose
from benchmarks.report import plotted, report
from benchmarks.shapes import SHAPES
from benchmarks.subject import random_subject


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(SHAPES), help="which shapes, separated by commas")
    parser.add_argument("--engines", help="which engines, separated by commas; bento_kv is all of ours")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each engine, after one that warms up")
    parser.add_argument("--threads", type=int, default=2, help="of every engine")
    parser.add_argument(
        "--patience",
        type=float,
        default=10.0,
        help="seconds that an engine may take in a cell, as in benchmarks.rounds",
    )
    parser.add_argument("--quick", action="store_true", help="few cells: to see that all engines run")
    parser.add_argument("--out", type=Path, default=results.FOLDER, help="folder of the result")
    options = parser.parse_args()
    models = options.models.split(",")
    if unknown := [model for model in models if model not in SHAPES]:
        parser.error(f"there is no model {unknown[0]!r}; there are {', '.join(SHAPES)}")
    try:
        engines = choose(options.engines)
    except ValueError as error:
        parser.error(str(error))
    if options.rounds < 1 or options.threads < 1:
        parser.error("rounds and threads must be at least 1")
    plan = QUICK if options.quick else WHOLE
    bench = Bench(engines, threads=options.threads, rounds=options.rounds, patience=options.patience, plan=plan)
    for model in models:
        tell(f"{model}: random weights")
        bench.run(random_subject(model))
        path = bench.record.write(options.out)  # after each model, so that a run cut short leaves something
    print(report(bench.record))
    print(f"written to {path}; {plotted(bench.record, path.with_suffix('.svg'))}", file=sys.stderr)
    return 1 if bench.record.failed else 0


if __name__ == "__main__":
    sys.exit(main())

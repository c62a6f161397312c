"""Quality against speed, on a real model: bento_kv and other engines, each in the precisions that people use.

    python -m benchmarks.frontier MODEL_DIR [--prepare] [--rounds 5] [--threads 2] [--contenders "bento_kv int4,genai int4"]

`--prepare` makes every engine's files and compares predictions, which need no quiet machine and are kept; without it, speed
is measured, too. The result is a JSON file and tables; `python -m benchmarks.frontier.report FILE --keep` puts a table of
all cells and a plot into benchmarks/results, and the table of the README in its place.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

from benchmarks.bench import Bench, Plan, files_of, tell
from benchmarks.catalogue import ENGINES
from benchmarks.frontier.contenders import CONTENDERS, engines_of
from benchmarks.frontier.quality import Judge
from benchmarks.frontier.report import report
from benchmarks.frontier.results import Frontier
from benchmarks.frontier.text import DESCRIPTION, sequences_of, write_text
from benchmarks.subject import FILES, Subject
from bento_kv.source import ModelSource

PLAN = Plan(prompts=(256,), rows=(1, 4, 16), steps={256: 16})
QUICK = Plan(prompts=(256,), rows=(1, 4, 16), steps={256: 2})
_WEIGHTS = (".gguf", ".bin", ".data", ".onnx")  # files that hold them


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.frontier", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a Hugging Face directory of a Llama or Qwen2")
    parser.add_argument("--contenders", default=";".join(CONTENDERS), help="which, separated by semicolons")
    parser.add_argument("--prepare", action="store_true", help="make files and compare predictions, no more")
    parser.add_argument("--rounds", type=int, default=5, help="measurements in each cell, after one that warms up")
    parser.add_argument("--threads", type=int, default=2, help="of every engine")
    parser.add_argument("--note", default="", help="what to say of the model's weights beside the numbers")
    parser.add_argument("--quick", action="store_true", help="few steps: to see that every cell works")
    options = parser.parse_args()
    names = options.contenders.split(";")
    if unknown := [name for name in names if name not in CONTENDERS]:
        parser.error(f"there is no contender {unknown[0]!r}; there are {'; '.join(CONTENDERS)}")
    plan = QUICK if options.quick else PLAN
    bench = Bench(engines_of(names), threads=options.threads, rounds=options.rounds, patience=20.0, plan=plan)
    found = run(bench, options.model, names, speed=not options.prepare, note=options.note)
    print(report(found))
    tell(f"written to {found.write()}")
    return 1 if found.record.failed else 0


def run(bench: Bench, source: Path, names: list[str], *, speed: bool, note: str) -> Frontier:
    """Prepare, compare predictions and, if asked for, measure speed."""
    model = _subject(source)
    prepared = {engine.name for engine in bench.prepare(model)}
    config = json.loads((source / "config.json").read_text())
    sequences = sequences_of(source, config["max_position_embeddings"])
    assert model.text is not None
    write_text(sequences, model.text)
    found = Frontier(
        model=model.name,
        parameters=_parameters(source),
        text=f"{sum(map(len, sequences))} tokens: {DESCRIPTION}",
        note=note,
        record=bench.record,
    )
    judge = Judge(bench, model, sequences)
    for name in names:
        engine = ENGINES[CONTENDERS[name][0]]
        if engine.name in prepared and (phases := judge.phases(engine)):
            found.quality[name] = phases
            files = [file for file in files_of(engine, model).iterdir() if file.suffix in _WEIGHTS]
            found.bits[name] = 8 * sum(file.stat().st_size for file in files) / found.parameters
    if speed:
        bench.run(model)
    return found


def _subject(source: Path) -> Subject:
    sha = ModelSource.find(str(source)).weights_sha256()
    folder = FILES / f"{source.name}-{sha[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    vocab = json.loads((source / "config.json").read_text())["vocab_size"]
    return Subject(name=source.name, source=source.resolve(), folder=folder, vocab=vocab, text=folder / "text.json")


def _parameters(source: Path) -> int:
    """Of the model, as its files have them: tied ones once."""
    from safetensors import safe_open

    count = 0
    for file in source.glob("*.safetensors"):
        with safe_open(file, "np") as tensors:
            count += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return count


if __name__ == "__main__":
    sys.exit(main())

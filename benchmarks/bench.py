"""A run: for each model, prepare every engine's files, load them all, and measure cell after cell."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.catalogue import ROOT, Engine
from benchmarks.limit import bandwidths
from benchmarks.process import WorkerError, WorkerProcess, busy_seconds, idle_load
from benchmarks.results import Cell, Loaded, Record
from benchmarks.rounds import Rounds
from benchmarks.shapes import SHAPES, write_model
from bento_kv.host import processor

FILES = ROOT / "build" / "bench"
MADE = "made"  # beside prepared files: the fingerprint of what made them
BUSY = 0.05  # of a core: an idle worker that uses more disturbs the others

PROMPTS = (32, 256, 1024)
ROWS = (1, 2, 4, 8, 16)
STEPS = {256: 16, 2048: 8}  # by context


class Bench:
    """Engines and how they are measured; `record` holds what was.

    Args:
        engines: those that are absent are named in the record.
        threads: of each engine.
        rounds: measurements of an engine in a cell.
        patience: see `Rounds`.
        quick: a few cells only.
    """

    def __init__(self, engines: list[Engine], *, threads: int, rounds: int, patience: float, quick: bool) -> None:
        self._threads, self._rounds, self._patience, self._quick = threads, rounds, patience, quick
        tell("memory bandwidth")
        self.record = Record(machine=processor(), threads=threads, rounds=rounds, bandwidth=bandwidths(threads))
        self._engines = []
        for engine in engines:
            if reason := engine.absent:
                self.record.left_out[engine.name] = reason
                tell(f"{engine.name}: {reason}")
            else:
                self._engines.append(engine)

    def run(self, model: str) -> None:
        """Measure one model."""
        folder = FILES / model
        source = folder / "source"
        if not (folder / "source.made").is_file():
            tell(f"{model}: making random weights")
            write_model(SHAPES[model], source)
            (folder / "source.made").touch()
        prepared = [engine for engine in self._engines if self._prepare(engine, model, folder)]
        with ExitStack() as stack:
            loaded = [pair for engine in prepared if (pair := self._load(engine, model, folder, stack))]
            self._measure(model, [worker for worker, _ in loaded])
            for worker, facts in loaded:
                if worker.alive:
                    self.record.loaded.append(Loaded(**facts, peak_mib=worker.ask("memory")["peak_mib"]))

    def _settings(self, engine: Engine, folder: Path) -> dict[str, Any]:
        longest = max(STEPS)
        return {
            "source": str(folder / "source"),
            "target": str(folder / (engine.files or "source")),
            "threads": self._threads,
            "rows": max(ROWS),
            # All rounds' steps, and those by which a row can be ahead of another when all are ready.
            "max_length": longest + (self._rounds + 1) * STEPS[longest] + 4 * max(ROWS),
        }

    def _prepare(self, engine: Engine, model: str, folder: Path) -> bool:
        """Make an engine's files unless they are there and as today's code would make them."""
        if engine.files is None:
            return True
        made = folder / f"{engine.files}.{MADE}"
        if made.is_file() and made.read_text() == engine.fingerprint:
            return True
        tell(f"{model}: preparing {engine.files}")
        made.unlink(missing_ok=True)
        shutil.rmtree(folder / engine.files, ignore_errors=True)
        worker = WorkerProcess(engine, self._settings(engine, folder), folder / f"{engine.name}.log")
        try:
            worker.ask("prepare")
        except WorkerError as error:
            self._fail(engine.name, model, error)
            return False
        finally:
            worker.close()
        made.write_text(engine.fingerprint)
        return True

    def _load(
        self, engine: Engine, model: str, folder: Path, stack: ExitStack
    ) -> tuple[WorkerProcess, dict[str, Any]] | None:
        """A worker that has computed something, and what is known of it: the fields of `Loaded` but for the peak."""
        worker = WorkerProcess(engine, self._settings(engine, folder), folder / f"{engine.name}.log")
        stack.callback(worker.close)
        try:
            answer = worker.ask("load")
            worker.ask("prefill", prompt=list(range(300, 332)))  # what the first step allocates is memory of the engine
            resident = worker.ask("memory")["resident_mib"]
        except WorkerError as error:
            self._fail(engine.name, model, error)
            return None
        idle = idle_load(worker)
        tell(f"{model}: {engine.name} loaded in {answer['seconds']:.1f} s, {resident:.0f} MiB")
        if idle > BUSY:
            tell(f"{model}: {engine.name} uses {idle:.2f} of a core while it is idle")
        facts = {
            "engine": engine.name,
            "model": model,
            "load_seconds": answer["seconds"],
            "resident_mib": resident,
            "idle_load": idle,
            "versions": answer["versions"],
        }
        return worker, facts

    def _measure(self, model: str, workers: list[WorkerProcess]) -> None:
        rounds = Rounds(self.record, model, SHAPES[model], self._rounds, self._patience)
        for context in (32, 256) if self._quick else PROMPTS:
            cell = Cell(phase="prefill", rows=1, context=context, steps=1)
            self._timed(model, workers, cell, partial(rounds.prefill, workers, cell))
        for context, steps in ((256, 8),) if self._quick else STEPS.items():
            standing = 0
            for rows in (1, 4) if self._quick else ROWS:
                cell = Cell(phase="decode", rows=rows, context=context, steps=steps)
                self._timed(model, workers, cell, partial(rounds.decode, workers, cell, standing))
                standing = rows

    def _timed(self, model: str, workers: list[WorkerProcess], cell: Cell, work: Callable[[], None]) -> None:
        before, began, others = len(self.record.rows), time.perf_counter(), _seconds_of_others(workers)
        work()
        seconds = time.perf_counter() - began
        load = max(0.0, (_seconds_of_others(workers) - others) / seconds)
        self.record.other_load[f"{model}, {cell}"] = load
        tell(f"{model}: {cell}, {seconds:.0f} s, others used {load:.2f} cores")
        for row in self.record.rows[before:]:
            tell(f"  {row.engine:>20} {row.median:8.1f} tokens/s ({row.minimum:.1f} to {row.maximum:.1f})")

    def _fail(self, engine: str, model: str, error: WorkerError) -> None:
        self.record.failed[f"{engine}, {model}"] = str(error)
        tell(str(error))


def _seconds_of_others(workers: list[WorkerProcess]) -> float:
    """Processor time of whatever else runs on this machine; a worker that has ended is among it."""
    return busy_seconds() - sum(worker.cpu_seconds() for worker in workers if worker.alive)


def tell(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)

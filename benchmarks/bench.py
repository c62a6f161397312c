"""A run: for each model, prepare every engine's files, load them all, and measure cell after cell."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.catalogue import Engine
from benchmarks.limit import bandwidths
from benchmarks.process import WorkerError, WorkerProcess, busy_seconds, idle_load
from benchmarks.results import Cell, Loaded, Record
from benchmarks.rounds import Rounds
from benchmarks.subject import Subject
from bento_kv.host import processor

MADE = "made"  # beside prepared files: the fingerprint of what made them
BUSY = 0.05  # of a core: an idle worker that uses more disturbs the others


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The cells of a run.

    Attributes:
        prompts: tokens of each prompt that is prefilled.
        rows: that decode together, ascending.
        steps: of a measurement of decode, by the context that rows stand in.
    """

    prompts: tuple[int, ...]
    rows: tuple[int, ...]
    steps: dict[int, int]


WHOLE = Plan(prompts=(32, 256, 1024), rows=(1, 2, 4, 8, 16), steps={256: 16, 2048: 8})
QUICK = Plan(prompts=(32, 256), rows=(1, 4), steps={256: 8})


class Bench:
    """Engines and how they are measured; `record` holds what was.

    Args:
        engines: those that are absent are named in the record.
        threads: of each engine.
        rounds: measurements of an engine in a cell.
        patience: see `Rounds`.
        plan: what is measured.
    """

    def __init__(self, engines: list[Engine], *, threads: int, rounds: int, patience: float, plan: Plan) -> None:
        self._threads, self._rounds, self._patience, self._plan = threads, rounds, patience, plan
        tell("memory bandwidth")
        self.record = Record(machine=processor(), threads=threads, rounds=rounds, bandwidth=bandwidths(threads))
        self._engines = []
        for engine in engines:
            if reason := engine.absent:
                self.record.left_out[engine.name] = reason
                tell(f"{engine.name}: {reason}")
            else:
                self._engines.append(engine)

    def prepare(self, model: Subject) -> list[Engine]:
        """Make the engines' files; those whose files are there."""
        return [engine for engine in self._engines if self._prepare(engine, model)]

    def run(self, model: Subject) -> None:
        """Measure one model."""
        prepared = self.prepare(model)
        with ExitStack() as stack:
            loaded = [pair for engine in prepared if (pair := self._load(engine, model, stack))]
            self._measure(model, [worker for worker, _ in loaded])
            for worker, facts in loaded:
                if worker.alive:
                    self.record.loaded.append(Loaded(**facts, peak_mib=worker.ask("memory")["peak_mib"]))

    def worker(self, engine: Engine, model: Subject) -> WorkerProcess:
        """A worker that was told nothing yet; to be closed."""
        longest = max(self._plan.steps)
        settings = {
            "source": str(model.source),
            "target": str(files_of(engine, model)),
            "text": None if model.text is None else str(model.text),
            "threads": self._threads,
            "rows": max(self._plan.rows),
            # All rounds' steps, and those by which a row can be ahead of another when all are ready.
            "max_length": longest + (self._rounds + 1) * self._plan.steps[longest] + 4 * max(self._plan.rows),
        }
        return WorkerProcess(engine, settings, model.folder / f"{engine.name}.log")

    def fail(self, engine: Engine, model: Subject, error: WorkerError) -> None:
        """Note that an engine does not take part any more, and why."""
        self.record.failed[f"{engine.name}, {model.name}"] = str(error)
        tell(str(error))

    def _prepare(self, engine: Engine, model: Subject) -> bool:
        """Make an engine's files unless they are there and as today's code would make them."""
        if engine.files is None:
            return True
        made = model.folder / f"{engine.files}.{MADE}"
        if made.is_file() and made.read_text() == engine.fingerprint:
            return True
        tell(f"{model.name}: preparing {engine.files}")
        made.unlink(missing_ok=True)
        shutil.rmtree(files_of(engine, model), ignore_errors=True)
        worker = self.worker(engine, model)
        try:
            worker.ask("prepare")
        except WorkerError as error:
            self.fail(engine, model, error)
            return False
        finally:
            worker.close()
        made.write_text(engine.fingerprint)
        return True

    def _load(self, engine: Engine, model: Subject, stack: ExitStack) -> tuple[WorkerProcess, dict[str, Any]] | None:
        """A worker that has computed something, and what is known of it: the fields of `Loaded` but for the peak."""
        worker = self.worker(engine, model)
        stack.callback(worker.close)
        try:
            answer = worker.ask("load")
            worker.ask("prefill", prompt=list(range(300, 332)))  # what the first step allocates is memory of the engine
            resident = worker.ask("memory")["resident_mib"]
        except WorkerError as error:
            self.fail(engine, model, error)
            return None
        idle = idle_load(worker)
        tell(f"{model.name}: {engine.name} loaded in {answer['seconds']:.1f} s, {resident:.0f} MiB")
        if idle > BUSY:
            tell(f"{model.name}: {engine.name} uses {idle:.2f} of a core while it is idle")
        facts = {
            "engine": engine.name,
            "model": model.name,
            "load_seconds": answer["seconds"],
            "resident_mib": resident,
            "idle_load": idle,
            "versions": answer["versions"],
        }
        return worker, facts

    def _measure(self, model: Subject, workers: list[WorkerProcess]) -> None:
        rounds = Rounds(self.record, model, self._rounds, self._patience)
        for context in self._plan.prompts:
            cell = Cell(phase="prefill", rows=1, context=context, steps=1)
            self._timed(model, workers, cell, partial(rounds.prefill, workers, cell))
        for context, steps in self._plan.steps.items():
            standing = 0
            for rows in self._plan.rows:
                cell = Cell(phase="decode", rows=rows, context=context, steps=steps)
                self._timed(model, workers, cell, partial(rounds.decode, workers, cell, standing))
                standing = rows

    def _timed(self, model: Subject, workers: list[WorkerProcess], cell: Cell, work: Callable[[], None]) -> None:
        before, began, others = len(self.record.rows), time.perf_counter(), _seconds_of_others(workers)
        work()
        seconds = time.perf_counter() - began
        load = max(0.0, (_seconds_of_others(workers) - others) / seconds)
        self.record.other_load[f"{model.name}, {cell}"] = load
        tell(f"{model.name}: {cell}, {seconds:.0f} s, others used {load:.2f} cores")
        for row in self.record.rows[before:]:
            tell(f"  {row.engine:>20} {row.median:8.1f} tokens/s ({row.minimum:.1f} to {row.maximum:.1f})")


def files_of(engine: Engine, model: Subject) -> Path:
    """What an engine loads."""
    return model.source if engine.files is None else model.folder / engine.files


def _seconds_of_others(workers: list[WorkerProcess]) -> float:
    """Processor time of whatever else runs on this machine; a worker that has ended is among it."""
    return busy_seconds() - sum(worker.cpu_seconds() for worker in workers if worker.alive)


def tell(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)

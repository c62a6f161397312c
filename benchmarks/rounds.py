"""Engines in turns: every round measures each of them once, in an order drawn anew, so that all meet the same noise.

An order that only turned would leave each engine behind the same other one, with what that one leaves in the caches.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from benchmarks.process import WorkerError, WorkerProcess, rest
from benchmarks.results import Cell, Record, Row
from benchmarks.subject import Subject


class Measure(Protocol):
    """One measurement: seconds."""

    def __call__(self, worker: WorkerProcess, turn: int) -> float: ...


class Rounds:
    """The cells of one model.

    Args:
        record: where rows go, and what was left out.
        model: which.
        rounds: measurements of an engine in a cell, after one that warms up.
        patience: seconds of measuring that an engine may take in a cell, after which it has fewer rounds than the others;
            one that would take twice as long to get ready is left out.
    """

    def __init__(self, record: Record, model: Subject, rounds: int, patience: float) -> None:
        self._record, self._model = record, model
        self._rounds, self._patience = rounds, patience
        self._prefill_seconds: dict[str, float] = {}  # a prompt token's, by engine, of the longest prompt so far

    def prefill(self, workers: list[WorkerProcess], cell: Cell) -> None:
        """Measure the time to a prompt's first token."""

        def measure(worker: WorkerProcess, turn: int) -> float:
            # A new prompt each time, the same for all: nobody shall find it in a cache.
            seconds = worker.seconds("prefill", prompt=self._model.prompt(f"turn {turn}", cell.context))
            self._prefill_seconds[worker.engine.name] = seconds / cell.context
            return seconds

        self._measure(workers, cell, measure)

    def decode(self, workers: list[WorkerProcess], cell: Cell, standing: int) -> None:
        """Measure steps of rows that stand in a context.

        Args:
            workers: who takes part.
            cell: what to measure.
            standing: rows that stood in the same context before.
        """
        ready = []
        for worker in workers:
            name = worker.engine.name
            prompts = {"copies": 1, "keeps": cell.rows - standing, "computes": cell.rows}[worker.engine.filling]
            seconds = prompts * cell.context * self._prefill_seconds.get(name, 0.0)
            if seconds > 2 * self._patience:
                self._record.left_out[self._label(name, cell)] = (
                    f"its {prompts} prompts would take about {seconds:.0f} s, more than the {2 * self._patience:.0f} s it may"
                )
            elif self._try(worker, cell, lambda worker: worker.seconds("fill", **self._filling(cell))) is not None:
                ready.append(worker)
            rest(worker)
        self._measure(ready, cell, lambda worker, turn: worker.seconds("decode", steps=cell.steps))

    def _filling(self, cell: Cell) -> dict[str, int]:
        return {"rows": cell.rows, "context": cell.context, "room": (self._rounds + 1) * cell.steps}

    def _try(self, worker: WorkerProcess, cell: Cell, work: Callable[[WorkerProcess], float]) -> float | None:
        """What the work returns; None where the worker failed, which is noted, and at once where it has ended before."""
        if not worker.alive:
            return None
        try:
            return work(worker)
        except WorkerError as error:
            self._record.failed[self._label(worker.engine.name, cell)] = str(error)
            return None

    def _label(self, engine: str, cell: Cell) -> str:
        return f"{engine}, {self._model.name}, {cell}"

    def _measure(self, workers: list[WorkerProcess], cell: Cell, measure: Measure) -> None:
        seconds: dict[str, list[float]] = {worker.engine.name: [] for worker in workers}
        spent = dict.fromkeys(seconds, 0.0)
        going = list(workers)
        for turn in range(self._rounds + 1):  # the first warms up
            for worker in random.Random(turn).sample(going, len(going)):
                name = worker.engine.name
                began = time.perf_counter()
                taken = self._try(worker, cell, partial(measure, turn=turn))
                rest(worker)
                spent[name] += time.perf_counter() - began
                if taken is None:
                    going = [other for other in going if other is not worker]
                elif turn:
                    seconds[name].append(taken)
            going = [
                worker
                for worker in going
                if spent[worker.engine.name] < self._patience or not seconds[worker.engine.name]
            ]
        for worker in workers:
            if taken_all := seconds[worker.engine.name]:
                self._record.rows.append(
                    Row.of(worker.engine.name, self._model.name, worker.engine.precision, cell, taken_all)
                )

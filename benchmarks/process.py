"""A worker as its parent sees it."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.catalogue import ROOT, Engine


class WorkerError(Exception):
    """A worker failed; the message says how, and where its log is."""


class WorkerProcess:
    """A worker process, to be asked one thing at a time.

    Args:
        engine: whose worker.
        settings: for the worker, besides the engine's own options.
        log: where its standard error goes.
    """

    def __init__(self, engine: Engine, settings: dict[str, Any], log: Path) -> None:
        self.engine = engine
        self._log = log
        threads = str(settings["threads"])
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": threads,
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        command = [str(engine.python), "-m", f"benchmarks.workers.{engine.worker}"]
        with log.open("a") as errors:
            self._process = subprocess.Popen(
                [*command, json.dumps(settings | engine.options)],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            WorkerError: the worker failed, now or before.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps({"command": command, **arguments}), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"{self.engine.name} ended with status {self._process.wait()}; see {self._log}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.engine.name} failed in {command}: {answer['error']}; see {self._log}")
        return answer

    def seconds(self, command: str, **arguments: Any) -> float:
        """The seconds that a request took, as the worker measured them."""
        return float(self.ask(command, **arguments)["seconds"])

    def cpu_seconds(self) -> float:
        """Processor time used so far, all threads. Source: Linux proc(5), fields 14 and 15 of `stat`."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """Let it end, by force if it does not within ten seconds."""
        assert self._process.stdin is not None
        try:
            print(json.dumps({"command": "quit"}), file=self._process.stdin, flush=True)
            self._process.stdin.close()
            self._process.wait(10)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()


_LOOK = 0.05  # seconds, five of the clock's ticks
_MOST_TICKS = 1


def rest(worker: WorkerProcess, patience: float = 2.0) -> None:
    """Wait until a worker's threads, which may spin for a moment after their work, leave the cores to the next engine."""
    tick = 1 / os.sysconf("SC_CLK_TCK")
    deadline = time.monotonic() + patience
    while worker.alive and time.monotonic() < deadline:
        before = worker.cpu_seconds()
        time.sleep(_LOOK)
        if worker.cpu_seconds() - before <= _MOST_TICKS * tick:
            return


def idle_load(worker: WorkerProcess, seconds: float = 1.0) -> float:
    """What share of a core a worker uses while it is asked nothing: threads that spin would slow the others."""
    time.sleep(0.5)  # they may spin for a moment after their work
    before = worker.cpu_seconds()
    time.sleep(seconds)
    return (worker.cpu_seconds() - before) / seconds


def busy_seconds() -> float:
    """Processor time that this machine has used so far, all cores. Source: Linux proc(5), `/proc/stat`."""
    user, nice, system, _idle, _iowait, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")

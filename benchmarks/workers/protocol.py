"""What an engine is asked to do, as JSON lines on standard input, answered as JSON lines on standard output.

A worker is idle unless it is asked, so that engines can take turns on the same cores. It is started by
`python -m benchmarks.workers.NAME`, and either prepares files once or loads them and is timed.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
from numpy.typing import NDArray


class Worker(Protocol):
    """An engine, loaded. Greedy; end-of-sequence tokens end nothing."""

    def prefill(self, prompt: list[int]) -> float:
        """Seconds from the submission of one prompt to its first token, beside nobody else."""
        ...

    def fill(self, rows: int, context: int, room: int) -> None:
        """Let exactly `rows` sequences stand ready to decode, of `context` tokens each and with `room` for more."""
        ...

    def decode(self, steps: int) -> float:
        """Seconds that `steps` more tokens of each standing sequence take. They stay."""
        ...


class Scorer(Worker, Protocol):
    """An engine that also says what it predicts, the way it computes when it generates."""

    def logits(self, ids: list[int], prompt: int) -> NDArray[np.float32]:
        """After each token of a text, `[len(ids), vocab_size]`: the first `prompt` in one prefill, then one by one."""
        ...


def prompt_of(row: int | str, length: int, vocab: int) -> list[int]:
    """The prompt of a sequence, the same in every engine, different in every row: of the text that there is, or random."""
    if file := argument("text"):
        return piece_of(json.loads(Path(file).read_text()), row, length)
    return random_ids(row, length, vocab)


def random_ids(name: int | str, length: int, vocab: int) -> list[int]:
    """Ids that follow from the name and the length."""
    return random.Random(f"{name} {length}").choices(range(300, vocab), k=length)


def piece_of(text: list[int], name: int | str, length: int) -> list[int]:
    """Consecutive ids of a text, from a place that follows from the name and the length."""
    start = random.Random(f"{name} {length}").randrange(len(text) - length + 1)
    return text[start : start + length]


def argument(name: str, default: Any = None) -> Any:
    """A value of the JSON object on the worker's command line."""
    return json.loads(sys.argv[1]).get(name, default)


def serve(prepare: Callable[[], None], load: Callable[[], Worker], packages: Iterable[str]) -> None:
    """Answer requests until `quit` or the end of standard input.

    Args:
        prepare: turn the model at `source` into the files at `target`.
        load: load the files at `target`; a `Scorer` where `logits` will be asked for.
        packages: whose versions belong to the results.
    """
    answers = _own_stdout()
    worker: Worker | None = None
    for line in sys.stdin:
        request = json.loads(line)
        command = request.pop("command")
        try:
            began = time.perf_counter()
            if command == "quit":
                return
            if command == "prepare":
                prepare()
                answer: dict[str, Any] = {"seconds": time.perf_counter() - began}
            elif command == "load":
                worker = load()
                answer = {
                    "seconds": time.perf_counter() - began,
                    "versions": {package: version(package) for package in packages},
                }
            elif command == "memory":
                answer = _memory()
            elif worker is None:
                raise RuntimeError(f"{command!r} was asked before 'load'")
            elif command == "logits":
                np.save(request.pop("file"), worker.logits(**request).astype(np.float32, copy=False))
                answer = {"seconds": time.perf_counter() - began}
            else:
                seconds = getattr(worker, command)(**request)
                answer = {"seconds": time.perf_counter() - began if seconds is None else seconds}
        except Exception as error:  # noqa: BLE001 - engines raise anything; the parent is told and decides
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps(answer), file=answers, flush=True)


def _own_stdout() -> TextIO:
    """Standard output for the answers alone: what engines print, from C too, goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _memory() -> dict[str, float]:
    """Resident memory now and at its highest, MiB. Source: Linux proc(5), `VmRSS` and `VmHWM`."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    resident, peak = (int(fields[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
    return {"resident_mib": resident, "peak_mib": peak}

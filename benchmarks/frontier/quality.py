"""Predictions of every contender against the reference's, on the same ids, computed the way each generates."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from benchmarks.bench import Bench, tell
from benchmarks.catalogue import Engine
from benchmarks.frontier.contenders import REFERENCE
from benchmarks.frontier.results import Phases
from benchmarks.process import WorkerError, WorkerProcess
from benchmarks.subject import Subject
from bento_kv.proof.evaluation import Quality
from bento_kv.proof.quality import Divergence

Sequences = list[list[int]]


class Judge:
    """Measures engines one at a time; what was measured of the same files on the same text is kept.

    Args:
        bench: whose workers run.
        model: which.
        sequences: token ids; the first half of each is a prompt.
    """

    def __init__(self, bench: Bench, model: Subject, sequences: Sequences) -> None:
        self._bench, self._model, self._sequences = bench, model, sequences
        self._folder = model.folder / "quality"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._text = hashlib.sha256(json.dumps(sequences).encode()).hexdigest()

    def phases(self, engine: Engine) -> Phases | None:
        """Its quality in prompts and when decoding; None where it failed, which is noted."""
        key = self._text + engine.fingerprint
        kept = self._folder / f"{engine.name}.json"
        if kept.is_file() and (found := json.loads(kept.read_text()))["key"] == key:
            return Phases.of(found["phases"])
        tell(f"{self._model.name}: predictions of {engine.name}")
        worker = self._bench.worker(engine, self._model)
        try:
            worker.ask("load")
            phases = self._compare(worker)
        except WorkerError as error:
            self._bench.fail(engine, self._model, error)
            return None
        finally:
            worker.close()
        kept.write_text(json.dumps({"key": key, "phases": asdict(phases)}, indent=1) + "\n")
        return phases

    def _compare(self, worker: WorkerProcess) -> Phases:
        prefill, decode = Divergence(), Divergence()
        for ids, expected in zip(self._sequences, self._expected(), strict=True):
            prompt = len(ids) // 2
            theirs = np.load(expected, mmap_mode="r")
            got = self._logits(worker, ids)
            prefill.see(got[:prompt], theirs[:prompt], ids[1 : prompt + 1])
            decode.see(got[prompt:], theirs[prompt:], ids[prompt + 1 :])
        return Phases(prefill=Quality.of(prefill), decode=Quality.of(decode))

    def _logits(self, worker: WorkerProcess, ids: list[int]) -> NDArray[np.float32]:
        with TemporaryDirectory(dir=self._folder) as folder:
            file = Path(folder) / "logits.npy"
            worker.ask("logits", ids=ids, prompt=len(ids) // 2, file=str(file))
            return np.load(file)

    def _expected(self) -> list[Path]:
        """The reference's logits of every sequence, computed once."""
        folder = self._folder / f"reference-{self._text[:16]}"
        files = [folder / f"{number}.npy" for number in range(len(self._sequences))]
        if not all(file.is_file() for file in files):
            tell(f"{self._model.name}: predictions of the reference")
            folder.mkdir(exist_ok=True)
            worker = self._bench.worker(REFERENCE, self._model)
            try:
                worker.ask("load")
                for ids, file in zip(self._sequences, files, strict=True):
                    worker.ask("logits", ids=ids, prompt=len(ids), file=str(file))
            finally:
                worker.close()
        return files

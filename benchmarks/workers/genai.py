"""onnxruntime-genai: its builder's int4 model and its generator, which is of a fixed batch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime_genai
from numpy.typing import NDArray

from benchmarks.workers.protocol import argument, prompt_of, serve


class Genai:
    """A model directory of the builder. Rows cannot be copied, so each batch of sequences computes its own prompts."""

    def __init__(self) -> None:
        target = Path(argument("target"))
        self._vocab = json.loads((target / "genai_config.json").read_text())["model"]["vocab_size"]
        config = onnxruntime_genai.Config(str(target))
        session = {"intra_op_num_threads": argument("threads")}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self._model = onnxruntime_genai.Model(config)
        self._standing: onnxruntime_genai.Generator | None = None

    def prefill(self, prompt: list[int]) -> float:
        generator = self._generator(1, len(prompt) + 1)
        began = time.perf_counter()
        generator.append_tokens(np.array([prompt], np.int32))
        generator.generate_next_token()
        return time.perf_counter() - began

    def fill(self, rows: int, context: int, room: int) -> None:
        self._standing = None  # its memory goes before the next one's comes
        self._standing = self._generator(rows, context + room + 1)
        self._standing.append_tokens(np.array([prompt_of(row, context, self._vocab) for row in range(rows)], np.int32))
        self._standing.generate_next_token()

    def decode(self, steps: int) -> float:
        assert self._standing is not None
        began = time.perf_counter()
        for _ in range(steps):
            self._standing.generate_next_token()
            self._standing.get_next_tokens()
        return time.perf_counter() - began

    def logits(self, ids: list[int], prompt: int) -> NDArray[np.float32]:
        generator = self._generator(1, len(ids) + 1)
        found = []
        for tokens in (ids[:prompt], *([token] for token in ids[prompt:])):
            generator.append_tokens(np.array([tokens], np.int32))
            found.append(generator.get_output("logits")[0])  # [tokens, vocab_size]
        return np.concatenate(found)

    def _generator(self, rows: int, length: int) -> onnxruntime_genai.Generator:
        params = onnxruntime_genai.GeneratorParams(self._model)
        # A minimal length of all keeps the end of sequence away.
        params.set_search_options(batch_size=rows, max_length=length, min_length=length, do_sample=False)
        return onnxruntime_genai.Generator(self._model, params)


def prepare() -> None:
    target = Path(argument("target"))
    shutil.rmtree(target, ignore_errors=True)
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", argument("source"), "-o", str(target)]
    # The builder leaves its cache where it was started, unless told where.
    command += ["-p", "int4", "-e", "cpu", "-c", str(target.with_name(target.name + "-cache"))]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    serve(prepare, Genai, ["onnxruntime-genai", "onnxruntime"])

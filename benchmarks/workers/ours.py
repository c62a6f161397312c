"""bento_kv: the whole engine, with scheduling, sampling and detokenization, stepped in this thread."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.workers.protocol import argument, prompt_of, serve
from bento_kv.contract.plan import StepPlan, StepRow
from bento_kv.engine.config import EngineConfig
from bento_kv.engine.engine import Engine
from bento_kv.engine.request import Request, SamplingParams, StepOutput
from bento_kv.runtime.open import open_decoder
from bento_kv.text.tokenizer import Tokenizer

POSITIONS = 4096  # that are exported: those of a run, which depend on its rounds, are fewer


class Ours:
    """The engine over a decoder directory."""

    def __init__(self) -> None:
        directory, exact = Path(argument("target")), argument("exact")
        rows, threads, length = argument("rows"), argument("threads"), argument("max_length")
        decoder = open_decoder(directory, slots=rows, exact=exact, threads=threads, max_length=length)
        config = EngineConfig(slots=rows, exact=exact, threads=threads, max_length=length)
        self._decoder, self._vocab = decoder, decoder.vocab_size
        self._engine = Engine(decoder, Tokenizer(directory).decode, config)
        self._tokens: dict[str, int] = {}  # of the requests alive, how many were generated
        self._numbers = 0

    def prefill(self, prompt: list[int]) -> float:
        self._clear()
        began = time.perf_counter()
        self._submit(prompt, 1)
        while self._tokens:
            self._engine.step()
        return time.perf_counter() - began

    def fill(self, rows: int, context: int, room: int) -> None:
        self._clear()
        # The first row computes the prompt; the others are given copies of it by the prefix cache. Whoever has begun goes
        # on meanwhile, so the first row is ahead by a token or two a row; guesses may bring a few more than are asked for.
        for _ in range(rows):
            self._submit(prompt_of(0, context, self._vocab), room + 2 * rows + 16)
            while not all(self._tokens.values()):
                self._engine.step()

    def decode(self, steps: int) -> float:
        """Where guesses bring a row more than a token a step, the seconds are the share of the tokens asked for."""
        rows, before, tokens = len(self._tokens), sum(self._tokens.values()), 0
        wanted = steps * rows
        began = time.perf_counter()
        while tokens < wanted:
            self._engine.step()
            tokens = sum(self._tokens.values()) - before
            if len(self._tokens) < rows:
                raise RuntimeError(f"of {rows} rows {rows - len(self._tokens)} ended after {tokens} of {wanted} tokens")
        return (time.perf_counter() - began) * wanted / tokens

    def logits(self, ids: list[int], prompt: int) -> NDArray[np.float32]:
        found = [self._decoder.step(StepPlan([StepRow(0, ids[:prompt], 0, prompt)]))]
        found += [self._decoder.step(StepPlan([StepRow(0, [ids[at]], at)])) for at in range(prompt, len(ids))]
        return np.concatenate(found)

    def _submit(self, prompt: list[int], max_tokens: int) -> None:
        self._numbers += 1
        name = str(self._numbers)
        self._tokens[name] = 0

        def emit(output: StepOutput) -> None:
            if output.finish_reason == "error":
                raise RuntimeError(output.error)
            self._tokens[name] += len(output.token_ids)
            if output.finish_reason is not None:
                del self._tokens[name]

        params = SamplingParams(max_tokens=max_tokens, temperature=0.0)
        self._engine.submit(Request(id=name, prompt_ids=tuple(prompt), params=params, emit=emit))

    def _clear(self) -> None:
        for name in list(self._tokens):
            self._engine.abort(name)
        while self._tokens:
            self._engine.step()


def prepare() -> None:
    """Export the model; torch is imported here and leaves with this process."""
    from bento_kv.contract.weight_options import QuantizationOptions
    from bento_kv.export.exporter import export
    from bento_kv.export.growing import export_growing
    from bento_kv.repair.adopt import adopt

    target = Path(argument("target"))
    shutil.rmtree(target, ignore_errors=True)
    if argument("layout") == "growing":
        target.mkdir(parents=True)
        export_growing(argument("source"), target / "model.onnx")
        adopt(target, argument("source"))
    else:
        export(
            argument("source"),
            target,
            precision=argument("precision"),
            quantization=QuantizationOptions(**argument("quantization", {})),
            kv_cache=argument("kv_cache"),
            max_length=POSITIONS,
        )


if __name__ == "__main__":
    serve(prepare, Ours, ["onnxruntime", "numpy"])

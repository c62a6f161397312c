"""optimum: its exported ONNX model in ONNX Runtime, fp32, with its growing cache and a greedy loop around it.

Its `generate` is that of transformers; the loop does what it does for greedy search and no more.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from optimum.exporters.onnx import main_export
from optimum.onnxruntime import ORTModelForCausalLM

from benchmarks.workers.protocol import argument, prompt_of, serve


class OptimumOrt:
    """An exported model. The cache is what the model returned, handed back to it."""

    def __init__(self) -> None:
        torch.set_num_threads(argument("threads"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = argument("threads")
        self._model = ORTModelForCausalLM.from_pretrained(argument("target"), session_options=options)
        self._context = 0
        self._saved: Any = None  # the next token and the cache of one row of that context
        self._next = torch.empty(0)
        self._past: Any = None

    def prefill(self, prompt: list[int]) -> float:
        began = time.perf_counter()
        self._step(torch.tensor([prompt]), None)
        return time.perf_counter() - began

    def fill(self, rows: int, context: int, room: int) -> None:
        self._past = None  # its memory goes before the next one's comes
        if self._context != context:
            prompt = torch.tensor([prompt_of(0, context, self._model.config.vocab_size)])
            self._context, self._saved = context, self._step(prompt, None)
        token, past = self._saved
        self._next = token.repeat(rows, 1)
        self._past = tuple(tuple(side.repeat(rows, 1, 1, 1) for side in layer) for layer in past)

    def decode(self, steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            self._next, self._past = self._step(self._next, self._past)
        return time.perf_counter() - began

    @torch.inference_mode()
    def _step(self, ids: torch.Tensor, past: Any) -> tuple[torch.Tensor, Any]:
        """The likeliest next tokens `[rows, 1]`, and the cache behind them."""
        length = ids.shape[1] + (past[0][0].shape[2] if past is not None else 0)
        mask = torch.ones(ids.shape[0], length, dtype=torch.int64)
        positions = torch.arange(length - ids.shape[1], length).expand(ids.shape)
        out = self._model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=past)
        return out.logits[:, -1:].argmax(-1), out.past_key_values


def prepare() -> None:
    target = Path(argument("target"))
    shutil.rmtree(target, ignore_errors=True)
    main_export(argument("source"), output=target, task="text-generation-with-past", do_validation=False)


if __name__ == "__main__":
    serve(prepare, OptimumOrt, ["optimum-onnx", "onnxruntime", "transformers"])

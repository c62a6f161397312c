"""transformers: its `generate` in fp32 with its default, growing cache."""

from __future__ import annotations

import copy
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, DynamicCache

from benchmarks.workers.protocol import argument, prompt_of, serve


class Generate:
    """A model in torch. Each call of `generate` continues from the cache that the call before it left."""

    def __init__(self) -> None:
        torch.set_num_threads(argument("threads"))
        self._model = AutoModelForCausalLM.from_pretrained(argument("target"), dtype=torch.float32).eval()
        self._saved: tuple[torch.Tensor, DynamicCache] | None = None  # one row of the last context
        self._ids = torch.empty(0)
        self._cache = DynamicCache()

    def prefill(self, prompt: list[int]) -> float:
        began = time.perf_counter()
        self._generate(torch.tensor([prompt]), DynamicCache(), 1)
        return time.perf_counter() - began

    def fill(self, rows: int, context: int, room: int) -> None:
        self._cache = DynamicCache()  # the last one's memory goes before the next one's comes
        if self._saved is None or self._saved[0].shape[1] != context + 1:
            cache = DynamicCache()
            prompt = torch.tensor([prompt_of(0, context, self._model.config.vocab_size)])
            self._saved = self._generate(prompt, cache, 1), cache
        ids, cache = self._saved
        self._ids = ids.repeat(rows, 1)
        self._cache = copy.deepcopy(cache)
        self._cache.batch_repeat_interleave(rows)

    def decode(self, steps: int) -> float:
        began = time.perf_counter()
        self._ids = self._generate(self._ids, self._cache, steps)
        return time.perf_counter() - began

    @torch.inference_mode()
    def logits(self, ids: list[int], prompt: int) -> NDArray[np.float32]:
        """In one pass: in fp32 the way of computing changes next to nothing, and this is the reference."""
        scores: torch.Tensor = self._model(torch.tensor([ids])).logits[0]
        return scores.numpy()

    @torch.inference_mode()
    def _generate(self, ids: torch.Tensor, cache: DynamicCache, tokens: int) -> torch.Tensor:
        out: Any = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=cache,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
        )
        return out


def prepare() -> None:
    """Nothing: the source is what it loads."""


if __name__ == "__main__":
    serve(prepare, Generate, ["transformers", "torch"])

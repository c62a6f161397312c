"""OpenVINO GenAI: weights of int4 (symmetric, groups of 64) or int8 (a scale a column), and its continuous batching.

Defaults besides: inference precision (bfloat16 where the processor has it) and an 8-bit cache.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai
from numpy.typing import NDArray

from benchmarks.workers.protocol import argument, prompt_of, serve

CACHE_GIB = 2
BATCHED_TOKENS = 2048  # tokens that share a step; its default, 256, cuts long prompts into many


class OpenVino:
    """A continuous batching pipeline. Prompts of standing rows are found again in its prefix cache."""

    def __init__(self) -> None:
        target = Path(argument("target"))
        self._vocab = json.loads((target / "config.json").read_text())["vocab_size"]
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = CACHE_GIB
        scheduler.max_num_seqs = argument("rows")
        scheduler.max_num_batched_tokens = argument("batched_tokens", BATCHED_TOKENS)
        scheduler.enable_prefix_caching = True
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(str(target), scheduler, "CPU", _properties())
        self._standing: list[openvino_genai.GenerationHandle] = []
        self._numbers = 0

    def prefill(self, prompt: list[int]) -> float:
        self._clear()
        began = time.perf_counter()
        handle = self._submit(prompt, 1)
        while not handle.can_read():
            self._pipeline.step()
        seconds = time.perf_counter() - began
        self._clear()
        return seconds

    def fill(self, rows: int, context: int, room: int) -> None:
        self._clear()
        # Rows begin while others still compute their prompts, so the first can be ahead by a token a step.
        self._standing = [self._submit(prompt_of(row, context, self._vocab), room + 2 * rows) for row in range(rows)]
        begun = [False] * rows
        while not all(begun):
            self._pipeline.step()
            begun = [was or bool(handle.can_read()) for was, handle in zip(begun, self._standing, strict=True)]
        self._read()

    def decode(self, steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            self._pipeline.step()
        seconds = time.perf_counter() - began
        tokens = self._read()
        if tokens != steps * len(self._standing):
            raise RuntimeError(f"{steps} steps of {len(self._standing)} rows brought {tokens} tokens")
        return seconds

    def logits(self, ids: list[int], prompt: int) -> NDArray[np.float32]:
        """From its runtime, because the pipeline gives none: the same graph and properties, its state the cache."""
        model = openvino.Core().compile_model(f"{argument('target')}/openvino_model.xml", "CPU", _properties())
        request = model.create_infer_request()
        found = []
        for start, end in ((0, prompt), *((at, at + 1) for at in range(prompt, len(ids)))):
            request.infer(
                {
                    "input_ids": np.array([ids[start:end]], np.int64),
                    "attention_mask": np.ones((1, end), np.int64),
                    "position_ids": np.arange(start, end)[None],
                    "beam_idx": np.zeros(1, np.int32),
                }
            )
            found.append(request.get_tensor("logits").data[0].copy())  # [tokens, vocab_size]
        return np.concatenate(found)

    def _submit(self, prompt: list[int], tokens: int) -> openvino_genai.GenerationHandle:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = tokens, True, False
        self._numbers += 1
        return self._pipeline.add_request(self._numbers, openvino.Tensor(np.array([prompt], np.int64)), config)

    def _read(self) -> int:
        """How many tokens came since they were read last."""
        count = 0
        for handle in self._standing:
            while handle.can_read():
                count += sum(len(output.generated_ids) for output in handle.read().values())
        return count

    def _clear(self) -> None:
        for handle in self._standing:
            handle.cancel()
        self._standing = []
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()


def _properties() -> dict[str, Any]:
    return {
        "INFERENCE_NUM_THREADS": argument("threads"),
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 64,
        "ENABLE_CPU_PINNING": False,  # pinned threads wait wherever another process stands, and nobody else here pins
    }


def prepare() -> None:
    """Export with optimum-intel and compress the weights with nncf; torch leaves with this process."""
    import nncf
    from optimum.exporters.openvino import main_export

    target = Path(argument("target"))
    whole = target.with_name(target.name + "-fp32")
    for folder in (target, whole):
        shutil.rmtree(folder, ignore_errors=True)
    main_export(argument("source"), output=whole, task="text-generation-with-past", convert_tokenizer=True)
    shutil.copytree(whole, target, ignore=shutil.ignore_patterns("openvino_model.*"))
    how = {
        "int4": {"mode": nncf.CompressWeightsMode.INT4_SYM, "group_size": 64, "ratio": 1.0},
        "int8": {"mode": nncf.CompressWeightsMode.INT8_ASYM},
    }
    whole_model = openvino.Core().read_model(whole / "openvino_model.xml")
    model = nncf.compress_weights(whole_model, **how[argument("precision")])
    openvino.save_model(model, target / "openvino_model.xml", compress_to_fp16=False)
    shutil.rmtree(whole)


if __name__ == "__main__":
    serve(prepare, OpenVino, ["openvino", "openvino-genai", "nncf"])

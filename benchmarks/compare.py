"""Time to first token and decode speed of the engine against transformers' `generate`, on the same weights.

    python -m benchmarks.compare [--models demo,135m] [--rounds 5] [--threads 2]

Both run in this process with the same threads, in turns, so that both meet the same noise; medians are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from bento_kv import demo
from bento_kv.adopt import adopt
from bento_kv.engine.config import EngineConfig
from bento_kv.engine.engine import Engine
from bento_kv.engine.request import Request, SamplingParams, StepOutput
from bento_kv.export.exporter import export
from bento_kv.export.growing import export_growing
from bento_kv.manifest import machine, versions_of
from bento_kv.runtime.open import open_decoder
from bento_kv.tokenizer import Tokenizer

PROMPT = 256
NEW_TOKENS = 48
BATCHES = (1, 4, 8, 16)
RESULTS = Path(__file__).parent / "results"

Generate = Callable[[list[list[int]], int], float]


def smollm2_135m(directory: Path) -> Path:
    """A random Llama of SmolLM2-135M's shape (HuggingFaceTB/SmolLM2-135M, config.json), with the demo's tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=2048,
        rope_theta=100000.0,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    AutoTokenizer.from_pretrained(demo.path()).save_pretrained(directory)
    return directory


def ours(directory: Path, exact: str, threads: int) -> Generate:
    """Seconds that the engine takes for a batch: scheduling, steps, sampling, detokenization."""
    mode = "full" if exact == "full" else "batch"
    config = EngineConfig(slots=max(BATCHES), exact=mode, threads=threads, max_length=PROMPT + NEW_TOKENS + 1)
    decoder = open_decoder(
        directory, slots=config.slots, exact=mode, threads=threads, max_length=PROMPT + NEW_TOKENS + 1
    )
    engine = Engine(decoder, Tokenizer(directory).decode, config)
    engine.start()

    def generate(prompts: list[list[int]], tokens: int) -> float:
        left = threading.Semaphore(0)

        def emit(output: StepOutput) -> None:
            if output.finish_reason is not None:
                assert output.finish_reason == "length", output
                left.release()

        params = SamplingParams(max_tokens=tokens, temperature=0.0)
        began = time.perf_counter()
        for number, prompt in enumerate(prompts):
            engine.submit(Request(id=str(number), prompt_ids=tuple(prompt), params=params, emit=emit))
        for _ in prompts:
            left.acquire()
        return time.perf_counter() - began

    return generate


def growing(source: Path, directory: Path) -> Path:
    """The same weights as other exporters write them, with a growing cache."""
    directory.mkdir()
    export_growing(str(source), directory / "model.onnx")
    adopt(directory, str(source))
    return directory


def transformers(directory: Path) -> Generate:
    """Seconds that transformers' greedy `generate` with its cache takes for a batch, in fp32."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()

    def generate(prompts: list[list[int]], tokens: int) -> float:
        ids = torch.tensor(prompts)
        began = time.perf_counter()
        with torch.inference_mode():
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )
        return time.perf_counter() - began

    return generate


def measure(engines: dict[str, Generate], vocab_size: int, rounds: int) -> list[dict[str, object]]:
    """Medians over interleaved rounds: time to first token of one prompt, and decode tokens a second by batch."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, object]] = []
    for batch in BATCHES:
        prompts = rng.integers(3, min(vocab_size, 1000), (batch, PROMPT)).tolist()
        first: dict[str, list[float]] = {name: [] for name in engines}
        rate: dict[str, list[float]] = {name: [] for name in engines}
        for turn in range(rounds + 1):  # the first is a warm-up
            for name, generate in engines.items():
                prefill = generate(prompts, 1)
                total = generate(prompts, NEW_TOKENS)
                if turn:
                    first[name].append(prefill)
                    rate[name].append(batch * (NEW_TOKENS - 1) / max(total - prefill, 1e-9))
        for name in engines:
            rows.append(
                {
                    "engine": name,
                    "batch": batch,
                    "prompt": PROMPT,
                    "first_token_ms": 1000 * statistics.median(first[name]),
                    "decode_tokens_per_second": statistics.median(rate[name]),
                    "decode_spread": [min(rate[name]), max(rate[name])],
                }
            )
            print(_line(rows[-1]), flush=True)
    return rows


def _line(row: dict[str, object]) -> str:
    return (
        f"{row['engine']!s:>28} x{row['batch']:<3} first token {row['first_token_ms']:8.1f} ms   "
        f"decode {row['decode_tokens_per_second']:8.1f} tokens/s"
    )


def ratios(rows: list[dict[str, object]]) -> str:
    """Ours over transformers, decode tokens a second and first-token speed, as a table."""
    by = {(row["engine"], row["batch"]): row for row in rows}
    lines = [
        "| batch | decode, `batch` | decode, `full` | decode, growing cache | first token, `batch` |",
        "| --- | --- | --- | --- | --- |",
    ]
    for batch in BATCHES:
        peer = by["transformers", batch]
        decode = [
            float(str(by[f"bento_kv {mode}", batch]["decode_tokens_per_second"]))
            / float(str(peer["decode_tokens_per_second"]))
            for mode in ("batch", "full", "growing")
        ]
        first = float(str(peer["first_token_ms"])) / float(str(by["bento_kv batch", batch]["first_token_ms"]))
        lines.append(f"| {batch} | {decode[0]:.1f} x | {decode[1]:.1f} x | {decode[2]:.1f} x | {first:.1f} x |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="demo,135m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory(prefix="bento_kv-bench-") as folder:
        for name in options.models.split(","):
            source = demo.path() if name == "demo" else smollm2_135m(Path(folder) / name)
            decoder = Path(folder) / f"{name}-decoder"
            manifest = export(str(source), decoder)
            engines = {
                "bento_kv batch": ours(decoder, "batch", options.threads),
                "bento_kv full": ours(decoder, "full", options.threads),
                "bento_kv growing": ours(growing(source, Path(folder) / f"{name}-growing"), "batch", options.threads),
                "transformers": transformers(source),
            }
            print(f"{name}: fp32, {options.threads} threads, prompts of {PROMPT}, {NEW_TOKENS} new tokens")
            rows = measure(engines, manifest.vocab_size, options.rounds)
            print(ratios(rows))
            results[name] = rows
    record = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions_of(("onnxruntime", "torch", "transformers", "numpy")),
        "threads": options.threads,
        "rounds": options.rounds,
        "models": results,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-compare.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written to {path}", file=sys.stderr)


if __name__ == "__main__":
    main()

"""Where the time of an engine's step goes: the runtime, what it is handed, choosing tokens, and the rest.

    python -m benchmarks.step DECODER [--rows 16] [--context 256] [--threads 2] [--steps 40]

Decode steps in mode `batch`, greedy and sampled (temperature, top-k, top-p). Medians, wall-clock time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from bento_kv.engine.config import EngineConfig
from bento_kv.engine.engine import Engine
from bento_kv.engine.request import Request, SamplingParams, StepOutput
from bento_kv.engine.sampler import Sampler
from bento_kv.runtime.open import open_decoder
from bento_kv.text.tokenizer import Tokenizer

SAMPLING = {
    "greedy": SamplingParams(temperature=0.0),
    "sampled": SamplingParams(temperature=0.7, top_k=20, top_p=0.8, seed=1),
}
_WARM_UP = 3


class Clock:
    """Adds up what calls of some functions take."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def watch(self, name: str, owner: Any, method: str) -> None:
        """Replace a method by one that is timed."""
        original: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

        setattr(owner, method, timed)


def profile(directory: Path, params: SamplingParams, options: argparse.Namespace, clock: Clock) -> dict[str, float]:
    """Milliseconds of a step by part."""
    length = options.context + options.steps + 3 * options.rows + _WARM_UP
    decoder = open_decoder(directory, slots=options.rows, threads=options.threads, max_length=length)
    clock.watch("step", decoder, "step")
    config = EngineConfig(slots=options.rows, threads=options.threads, max_length=length)
    engine = Engine(decoder, Tokenizer(directory).decode, config)
    begun = dict.fromkeys(range(options.rows), False)

    def submit(number: int) -> None:
        def emit(output: StepOutput) -> None:
            begun[number] = begun[number] or bool(output.token_ids)

        prompt = tuple(np.random.default_rng(number).integers(3, decoder.vocab_size, options.context).tolist())
        engine.submit(Request(id=str(number), prompt_ids=prompt, params=params, emit=emit))

    for number in begun:
        submit(number)
        while not begun[number]:
            engine.step()
    parts: dict[str, list[float]] = {}
    for step in range(_WARM_UP + options.steps):
        clock.seconds = {}
        began = time.perf_counter()
        engine.step()
        whole, seen = time.perf_counter() - began, clock.seconds
        found = {
            "runtime": seen["run"],
            "its inputs and outputs": seen["step"] - seen["run"],
            "choosing": seen["choose"],
            "the rest": whole - seen["step"] - seen["choose"],
            "whole step": whole,
        }
        if step >= _WARM_UP:
            for name, seconds in found.items():
                parts.setdefault(name, []).append(1000 * seconds)
    return {name: statistics.median(values) for name, values in parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("decoder", type=Path)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    clock = Clock()
    clock.watch("run", ort.InferenceSession, "run_with_iobinding")
    clock.watch("choose", Sampler, "choose")
    tables = {name: profile(options.decoder, params, options, clock) for name, params in SAMPLING.items()}
    print(
        f"ms of a step of {options.rows} rows at {options.context}\n\n| | {' | '.join(tables)} |\n| --- |{' --- |' * len(tables)}"
    )
    for part in next(iter(tables.values())):
        cells = [f"{table[part]:.2f} ({table[part] / table['whole step']:.1%})" for table in tables.values()]
        print(f"| {part} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

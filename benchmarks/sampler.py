"""What choosing a token costs: milliseconds for 16 rows, the check for NaN included, by sampling parameters.

    python -m benchmarks.sampler [--vocab 151936] [--rounds 9]

The vocabulary is Qwen2.5's, in two kinds of rows: peaked, a few tokens far above the others, as mostly; and flat, where every
token has a share. CPU time of the thread, medians: what other processes take is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bento_kv.engine.logits import token_logprobs
from bento_kv.engine.request import SamplingParams
from bento_kv.engine.sampler import Sampler

ROWS = 16
PROMPT = range(1000)  # what the repetition penalty counts as seen

CASES: dict[str, SamplingParams] = {
    "greedy": SamplingParams(temperature=0),
    "temperature": SamplingParams(temperature=0.8, seed=1),
    "temperature, top-k 50": SamplingParams(temperature=0.8, top_k=50, seed=1),
    "temperature, top-k 20, top-p 0.8": SamplingParams(temperature=0.7, top_k=20, top_p=0.8, seed=1),
    "top-p 0.9": SamplingParams(top_p=0.9, seed=1),
    "top-p 0.99": SamplingParams(top_p=0.99, seed=1),
    "min-p 0.05": SamplingParams(min_p=0.05, seed=1),
    "greedy, three penalties": SamplingParams(
        temperature=0, repetition_penalty=1.1, presence_penalty=0.5, frequency_penalty=0.5
    ),
    "greedy, 300 biases": SamplingParams(temperature=0, logit_bias={7 * i: 1.0 for i in range(300)}),
}

Logits = NDArray[np.float32]


def peaked(rng: np.random.Generator, vocab_size: int) -> Logits:
    """Logits `[rows, vocab_size]` of which forty a row stand out."""
    rows = rng.normal(0, 2, (ROWS, vocab_size))
    rows[:, rng.choice(vocab_size, 40, replace=False)] += np.linspace(6, 14, 40)
    return rows.astype(np.float32)


def flat(rng: np.random.Generator, vocab_size: int) -> Logits:
    """Logits `[rows, vocab_size]` of which none stands out."""
    return rng.normal(0, 0.5, (ROWS, vocab_size)).astype(np.float32)


def milliseconds(work: Callable[[Logits], None], logits: Logits, rounds: int) -> float:
    """The median of what `work` costs this thread; it is handed new logits each time, as a step hands them."""
    work(logits)
    times = []
    for _ in range(rounds):
        fresh = logits.copy()
        began = time.thread_time()
        work(fresh)
        times.append(1000 * (time.thread_time() - began))
    return statistics.median(times)


def choosing(params: SamplingParams) -> Callable[[Logits], None]:
    samplers = [Sampler(params, PROMPT) for _ in range(ROWS)]
    for sampler in samplers:
        sampler.record(3)

    def work(logits: Logits) -> None:
        for sampler, row in zip(samplers, logits, strict=True):
            assert np.isfinite(row).all()
            sampler.choose(row)

    return work


def logprobs(count: int) -> Callable[[Logits], None]:
    def work(logits: Logits) -> None:
        for row in logits:
            token_logprobs(row, 7, count)

    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vocab", type=int, default=151936)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    kinds = {kind.__name__: kind(rng, options.vocab) for kind in (peaked, flat)}
    works = {name: choosing(params) for name, params in CASES.items()}
    works |= {f"log-probabilities, top {count}": logprobs(count) for count in (0, 5, 20)}
    print(f"ms for {ROWS} rows of {options.vocab} logits\n\n| | {' | '.join(kinds)} |\n| --- |{' --- |' * len(kinds)}")
    for name, work in works.items():
        times = [f"{milliseconds(work, logits, options.rounds):.1f}" for logits in kinds.values()]
        print(f"| {name} | {' | '.join(times)} |", flush=True)


if __name__ == "__main__":
    main()

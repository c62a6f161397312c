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
from functools import partial

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

Row = NDArray[np.float32]


def peaked(rng: np.random.Generator, vocab_size: int) -> Row:
    """Logits `[vocab_size]` of which forty stand out."""
    row = rng.normal(0, 2, vocab_size)
    row[rng.choice(vocab_size, 40, replace=False)] += np.linspace(6, 14, 40)
    return row.astype(np.float32)


def flat(rng: np.random.Generator, vocab_size: int) -> Row:
    """Logits `[vocab_size]` of which none stands out."""
    return rng.normal(0, 0.5, vocab_size).astype(np.float32)


def milliseconds(work: Callable[[], None], rounds: int) -> float:
    """The median of what `work` costs this thread."""
    work()
    times = []
    for _ in range(rounds):
        began = time.thread_time()
        work()
        times.append(1000 * (time.thread_time() - began))
    return statistics.median(times)


def choosing(params: SamplingParams, rows: list[Row]) -> Callable[[], None]:
    samplers = [Sampler(params, PROMPT) for _ in rows]
    for sampler in samplers:
        sampler.record(3)

    def work() -> None:
        for sampler, row in zip(samplers, rows, strict=True):
            assert np.isfinite(row).all()
            sampler.choose(row)

    return work


def logprobs(count: int, rows: list[Row]) -> Callable[[], None]:
    def work() -> None:
        for row in rows:
            token_logprobs(row, 7, count)

    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vocab", type=int, default=151936)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    kinds = {kind.__name__: [kind(rng, options.vocab) for _ in range(ROWS)] for kind in (peaked, flat)}
    works = {name: partial(choosing, params) for name, params in CASES.items()}
    works |= {f"log-probabilities, top {count}": partial(logprobs, count) for count in (0, 5, 20)}
    print(f"ms for {ROWS} rows of {options.vocab} logits\n\n| | {' | '.join(kinds)} |\n| --- |{' --- |' * len(kinds)}")
    for name, make in works.items():
        times = [f"{milliseconds(make(rows), options.rounds):.1f}" for rows in kinds.values()]
        print(f"| {name} | {' | '.join(times)} |", flush=True)


if __name__ == "__main__":
    main()

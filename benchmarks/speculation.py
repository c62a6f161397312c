"""What looking guesses up in the prompt brings: one request at a time, with and without, on the demo model.

    python -m benchmarks.speculation [--speculation 8] [--exact batch] [--threads 2] [--rounds 5]

The skills of the demo model are the prompts: some answers copy, some repeat a little, most do neither. Both engines run in
this process, in turns; the best of the rounds is compared, which is what the machine can do when nobody disturbs it.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bento_kv.contract.plan import Exactness, StepPlan
from bento_kv.engine.config import EngineConfig
from bento_kv.engine.engine import Engine
from bento_kv.engine.request import Request, SamplingParams, StepOutput
from bento_kv.export.exporter import export
from bento_kv.runtime.decoder import OnnxDecoder
from bento_kv.text.tokenizer import Tokenizer
from recipes.demo import words
from recipes.demo.cases import case

SKILLS = ("copy", "recall", "chat", "unknown", "count", "reverse", "spell", "sums")
CASES = 12
Prompts = Sequence[Sequence[int]]


class Watched(OnnxDecoder):
    """Counts steps and drafts."""

    steps = drafts = 0

    def step(self, plan: StepPlan, *, position_offset: int = 0) -> NDArray[np.float32]:
        self.steps += 1
        self.drafts += sum(row.drafts for row in plan.rows)
        return super().step(plan, position_offset=position_offset)


@dataclass(frozen=True)
class Run:
    """What serving some prompts one after the other took."""

    outputs: list[tuple[int, ...]]
    seconds: float
    steps: int
    drafts: int

    @property
    def tokens(self) -> int:
        return sum(map(len, self.outputs))


class Side:
    """One of the two engines."""

    def __init__(self, directory: Path, exact: Exactness, threads: int, speculation: int) -> None:
        self._decoder = Watched(directory, slots=1, exact=exact, threads=threads)
        tokenizer = Tokenizer(directory)
        self._engine = Engine(
            self._decoder, tokenizer.decode, EngineConfig(slots=1, exact=exact, speculation=speculation)
        )
        self._ends = frozenset(tokenizer.encode("<|end|>", add_special_tokens=False))

    def run(self, prompts: Prompts) -> Run:
        self._decoder.steps = self._decoder.drafts = 0
        params = SamplingParams(temperature=0, max_tokens=120, stop_token_ids=self._ends)
        heard: list[list[StepOutput]] = [[] for _ in prompts]
        began = time.perf_counter()
        for number, (prompt, events) in enumerate(zip(prompts, heard, strict=True)):
            self._engine.submit(Request(id=str(number), prompt_ids=tuple(prompt), params=params, emit=events.append))
            while self._engine.step():
                pass
        seconds = time.perf_counter() - began
        outputs = [tuple(token for event in events for token in event.token_ids) for events in heard]
        return Run(outputs, seconds, self._decoder.steps, self._decoder.drafts)


def tasks(tokenizer: Tokenizer) -> Iterator[tuple[str, Prompts]]:
    """Names and prompts."""
    texts = [" ".join(random.Random(i).choice(words.WORDS) for _ in range(16))[:90] for i in range(CASES)]
    chats = [[{"role": "user", "content": f"Repeat after me: {text}"}] for text in texts]
    yield "long copies", [tokenizer.encode_chat(chat) for chat in chats]
    for skill in SKILLS:
        prompts = []
        for index in range(CASES):
            drawn = case(skill, index, 300)
            turns = [{"role": "system", "content": drawn.system}] if drawn.system else []
            for exchange in drawn.exchanges:
                turns.append({"role": "user", "content": exchange.user})
                turns.append({"role": "assistant", "content": exchange.answer})
            prompts.append(tokenizer.encode_chat(turns[:-1]))
        yield skill, prompts


@contextmanager
def demo_decoder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as parent:
        export("demo", Path(parent) / "demo")
        yield Path(parent) / "demo"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--speculation", type=int, default=8)
    parser.add_argument("--exact", choices=("batch", "full"), default="batch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with demo_decoder() as directory:
        plain, guessing = (Side(directory, options.exact, options.threads, most) for most in (0, options.speculation))
        print("| prompts | tokens a step | drafts right | tokens/s without | with | |\n|" + " --- |" * 6)
        for name, prompts in tasks(Tokenizer(directory)):
            rounds = [(plain.run(prompts), guessing.run(prompts)) for _ in range(options.rounds)]
            without, with_guesses = (min(side, key=lambda run: run.seconds) for side in zip(*rounds, strict=True))
            assert with_guesses.outputs == without.outputs, f"{name}: the answers differ"
            right = f"{without.steps - with_guesses.steps} of {with_guesses.drafts}"
            speeds = [run.tokens / run.seconds for run in (without, with_guesses)]
            print(
                f"| {name} | {with_guesses.tokens / with_guesses.steps:.2f} | {right} | {speeds[0]:.0f} | "
                f"{speeds[1]:.0f} | {speeds[1] / speeds[0]:.2f} x |",
                flush=True,
            )


if __name__ == "__main__":
    main()

"""A decoder without a model, and a slow engine to compare with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bento_kv.engine.engine import Engine
from bento_kv.engine.request import FinishReason, Request, SamplingParams, StepOutput, TokenLogprobs
from bento_kv.engine.sampler import Sampler
from bento_kv.plan import StepPlan

LETTERS = "abcdefghijklmnopqrstuvwxyz ,.!?\n"
VOCAB_SIZE = len(LETTERS)

NextLogits = Callable[[tuple[int, ...]], NDArray[np.float32]]


def letters(ids: Sequence[int], /) -> str:
    """A detokenizer: one character a token."""
    return "".join(LETTERS[i] for i in ids)


def to_ids(text: str) -> tuple[int, ...]:
    return tuple(LETTERS.index(character) for character in text)


def hash_logits(prefix: tuple[int, ...], vocab_size: int = VOCAB_SIZE) -> NDArray[np.float32]:
    """Logits `[vocab_size]` that depend on every token of the prefix and its place, as a true model's do."""
    digest = hashlib.blake2b(np.asarray(prefix, dtype=np.int64).tobytes(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest)).normal(0, 3, vocab_size).astype(np.float32)


def always(text: str, vocab_size: int = VOCAB_SIZE) -> NextLogits:
    """Logits of a model that answers every prompt without a line break in it with `text`, greedily, and again and again.

    A prompt is told from the answer by its last line break, so end it with one.
    """
    answer = to_ids(text)

    def logits(prefix: tuple[int, ...]) -> NDArray[np.float32]:
        line = prefix[::-1].index(to_ids("\n")[0])
        row = np.zeros(vocab_size, dtype=np.float32)
        row[answer[line % len(answer)]] = 1
        return row

    return logits


def copying(prefix: tuple[int, ...]) -> NDArray[np.float32]:
    """Logits of a model that mostly goes on as it did after the same two tokens, if they were there before."""
    row = hash_logits(prefix)
    for place in range(len(prefix) - 1, 1, -1):
        if prefix[place - 2 : place] == prefix[-2:]:
            row[prefix[place]] += 12
            break
    return row


class FakeDecoder:
    """Keeps each slot's tokens where a model would keep keys and values, and insists on what a true decoder insists on.

    Args:
        logits: of the next token after a prefix, `[vocab_size]`.
        before_step: called with each plan before it is computed; it may block or raise.

    Attributes:
        plans: computed so far.
    """

    def __init__(
        self,
        *,
        slots: int = 4,
        max_length: int = 64,
        vocab_size: int = VOCAB_SIZE,
        logits: NextLogits = hash_logits,
        before_step: Callable[[StepPlan], None] = lambda plan: None,
    ) -> None:
        self.slots = slots
        self.max_length = max_length
        self.vocab_size = vocab_size
        self.plans: list[StepPlan] = []
        self.before_step = before_step
        self._logits = logits
        self._written: list[list[int]] = [[] for _ in range(slots)]

    def step(self, plan: StepPlan) -> NDArray[np.float32]:
        self.before_step(plan)
        self.plans.append(plan)
        assert plan.rows, "an empty plan"
        assert len({row.slot for row in plan.rows}) == len(plan.rows), "a slot is there twice"
        assert len({row.decodes for row in plan.rows}) == 1, "prefill and decode rows are mixed"
        wanted: list[NDArray[np.float32]] = []
        for row in plan.rows:
            written = self._written[row.slot]
            assert 1 <= len(row.tokens) <= self.max_length - row.start, "tokens do not fit in the slot"
            assert 0 <= row.start <= len(written), "positions before the first token were never written"
            written[row.start :] = row.tokens
            for length in range(len(written) - row.logits + 1, len(written) + 1):
                wanted.append(self._logits(tuple(written[:length])))
        return np.stack(wanted)  # [sum(row.logits), vocab_size]


@dataclass
class Client:
    """Hears a request's events and insists that they are in order: one end, and nothing after it."""

    id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    error: str | None = None

    @property
    def request(self) -> Request:
        return Request(id=self.id, prompt_ids=self.prompt_ids, params=self.params, emit=self.hear)

    @property
    def result(self) -> tuple[object, ...]:
        return self.text, self.token_ids, self.logprobs, self.finish_reason, self.stop_reason, self.error

    def hear(self, output: StepOutput) -> None:
        assert self.finish_reason is None, "an event after the end"
        self.text += output.text
        self.token_ids += output.token_ids
        self.logprobs += output.logprobs
        self.finish_reason, self.stop_reason, self.error = output.finish_reason, output.stop_reason, output.error


def client(prompt: str = "hello\n", request_id: str = "r", **params: object) -> Client:
    return Client(request_id, to_ids(prompt), SamplingParams(**params))  # type: ignore[arg-type]


def run_to_end(engine: Engine, steps: int = 10_000) -> None:
    """Step an engine without a thread until nothing is left to do, checking its books."""
    for _ in range(steps):
        worked = engine.step()
        engine.check_books()
        if not worked:
            return
    raise AssertionError(f"not done after {steps} steps")


def reference(prompt_ids: Sequence[int], params: SamplingParams, *, max_length: int) -> tuple[object, ...]:
    """Text, token ids, finish reason and stop reason by the plainest of loops: no cache, no batch, no increments."""
    sampler = Sampler(params, prompt_ids)
    output: list[int] = []
    room = max_length - len(prompt_ids)
    while True:
        token_id = sampler.choose(hash_logits((*prompt_ids, *output)))
        sampler.record(token_id)
        if token_id in params.stop_token_ids:
            return letters(output), (*output, token_id), "stop", token_id
        output.append(token_id)
        text = letters(output)  # a character a token: a stop text ends where the text does
        if found := [stop for stop in params.stop if text.endswith(stop)]:
            stop = max(found, key=len)
            return text[: -len(stop)], tuple(output), "stop", stop
        if len(output) == (room if params.max_tokens is None else params.max_tokens):
            return text, tuple(output), "length", None

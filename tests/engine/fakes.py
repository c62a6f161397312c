"""A decoder without a model, and a slow engine to compare with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bento_kv.contract.plan import Exactness, StepPlan, StepRow
from bento_kv.engine.deadlines import Deadlines
from bento_kv.engine.engine import Engine
from bento_kv.engine.request import FinishReason, Request, SamplingParams, StepOutput, TokenLogprobs
from bento_kv.engine.sampler import Sampler

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


Saved = tuple[list[int], list[bool]]  # tokens, and by position whether a decode row computed it


class RuleBroken(BaseException):
    """The engine did what a true decoder would answer with other bits, if at all. Nobody may handle it."""


def insist(right: bool, rule: str) -> None:
    if not right:
        raise RuleBroken(rule)


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

    In mode `batch` each position also remembers which kind of row computed it, because a prompt is to be computed by prefill
    rows from its beginning to its end, whether they ran for this request or for one before it.

    Args:
        logits: of the next token after a prefix, `[vocab_size]`.
        before_step: called with each plan before it is computed; it may block or raise.
        exact: the mode.
        chunk_exact: False if prompts have to be computed in one go and nothing be taken over.
        tokens_in_pairs, draft_exact: what it says of drafts.

    Attributes:
        plans: computed so far.
        moves: copies, saves, restores and releases so far, with their arguments.
    """

    def __init__(
        self,
        *,
        slots: int = 4,
        max_length: int = 64,
        vocab_size: int = VOCAB_SIZE,
        logits: NextLogits = hash_logits,
        before_step: Callable[[StepPlan], None] = lambda plan: None,
        exact: Exactness = "batch",
        chunk_exact: bool = True,
        tokens_in_pairs: bool = False,
        draft_exact: bool = False,
    ) -> None:
        self.slots = slots
        self.max_length = max_length
        self.vocab_size = vocab_size
        self.chunk_exact = chunk_exact
        self.tokens_in_pairs = tokens_in_pairs
        self.draft_exact = draft_exact
        self.plans: list[StepPlan] = []
        self.moves: list[tuple[object, ...]] = []
        self.before_step = before_step
        self._exact = exact
        self._logits = logits
        self._written: list[list[int]] = [[] for _ in range(slots)]
        self._decoded: list[list[bool]] = [[] for _ in range(slots)]  # by position: computed in a decode row
        self._within = [False] * slots  # a prompt's beginning lies there, and its end is to come

    def step(self, plan: StepPlan) -> NDArray[np.float32]:
        self.before_step(plan)
        self.plans.append(plan)
        insist(bool(plan.rows), "an empty plan")
        insist(len({row.slot for row in plan.rows}) == len(plan.rows), "a slot is there twice")
        if self._exact == "batch":
            insist(len({row.decodes for row in plan.rows}) == 1, "prefill and decode rows are mixed")
        wanted = [logits for row in plan.rows for logits in self._row(row)]
        return (
            np.stack(wanted) if wanted else np.empty((0, self.vocab_size), np.float32)
        )  # [sum(row.logits), vocab_size]

    def _row(self, row: StepRow) -> list[NDArray[np.float32]]:
        written, decoded = self._written[row.slot], self._decoded[row.slot]
        insist(1 <= len(row.tokens) <= self.max_length - row.start, "tokens do not fit in the slot")
        insist(0 <= row.start <= len(written), "positions before the first token were never written")
        insist(0 <= row.logits <= len(row.tokens), "more logits than tokens")
        insist(self.chunk_exact or row.start == 0 or row.decodes, "a prompt in chunks")
        if self._exact == "batch":
            insist(not (row.decodes and row.start and self._within[row.slot]), "the end of a prompt in a decode row")
            insist(not (row.decodes and row.logits == 0), "a chunk of a prompt in a decode row")
        self._within[row.slot] = row.logits == 0
        insist(row.decodes or not any(decoded[: row.start]), "a prompt behind tokens of decode rows")
        written[row.start :] = row.tokens
        decoded[row.start :] = [row.decodes and self._exact == "batch"] * len(row.tokens)
        lengths = range(len(written) - row.logits + 1, len(written) + 1)
        return [self._logits(tuple(written[:length])) for length in lengths]

    def copy(self, source: int, target: int, length: int) -> None:
        self.moves.append(("copy", source, target, length))
        insist(source != target, "a slot copied onto itself")
        self._lay(target, self._read(source, length))

    def save(self, slot: int, length: int) -> Saved:
        self.moves.append(("save", slot, length))
        insist(1 <= length <= len(self._written[slot]), "more is read than was written")
        return self._written[slot][:length], self._decoded[slot][:length]

    def restore(self, slot: int, saved: Saved, length: int) -> None:
        self.moves.append(("restore", slot, length))
        written, decoded = saved
        insist(length <= len(written), "more is restored than was saved")
        insist(length == len(written) or not any(decoded), "a part of what was set aside")
        self._lay(slot, written[:length])
        if any(decoded):  # who was set aside goes on behind its tokens
            self._decoded[slot] = list(decoded)
            self._within[slot] = False

    def release(self, slot: int, length: int) -> None:
        self.moves.append(("release", slot, length))
        del self._written[slot][length:], self._decoded[slot][length:]
        self._within[slot] = length > 0

    def _read(self, slot: int, length: int) -> list[int]:
        insist(1 <= length <= len(self._written[slot]), "more is read than was written")
        insist(not any(self._decoded[slot][:length]), "tokens of decode rows are handed on")
        return self._written[slot][:length]

    def _lay(self, slot: int, tokens: list[int]) -> None:
        self._written[slot] = list(tokens)
        self._decoded[slot] = [False] * len(tokens)
        self._within[slot] = True


@dataclass
class Client:
    """Hears a request's events and insists that they are in order: one end, and nothing after it."""

    id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    priority: int = 0
    cache_salt: str | None = None
    deadlines: Deadlines = field(default_factory=Deadlines)
    client: str | None = None
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    error: str | None = None
    timeout: str | None = None

    @property
    def request(self) -> Request:
        return Request(
            id=self.id,
            prompt_ids=self.prompt_ids,
            params=self.params,
            emit=self.hear,
            priority=self.priority,
            cache_salt=self.cache_salt,
            client=self.client,
            deadlines=self.deadlines,
        )

    @property
    def result(self) -> tuple[object, ...]:
        return self.text, self.token_ids, self.logprobs, self.finish_reason, self.stop_reason, self.error

    def hear(self, output: StepOutput) -> None:
        assert self.finish_reason is None, "an event after the end"
        self.text += output.text
        self.token_ids += output.token_ids
        self.logprobs += output.logprobs
        self.finish_reason, self.stop_reason, self.error = output.finish_reason, output.stop_reason, output.error
        self.timeout = output.timeout


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

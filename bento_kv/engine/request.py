"""The engine's nouns: what a request asks for and what it gets back."""

from __future__ import annotations

import contextvars
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal, Protocol, TypedDict, Unpack

from bento_kv.contract.settings import Bounds, setting
from bento_kv.engine.deadlines import Deadlines, Timeout
from bento_kv.errors import BentoKVError, DecoderError, EngineClosedError, OutOfTimeError

FinishReason = Literal["stop", "length", "abort", "error"]


class Detokenize(Protocol):
    """Token ids to text, special tokens left out."""

    def __call__(self, ids: Sequence[int], /) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to choose tokens and when to stop. Ranges are checked where a request enters the engine;
    `bento_kv.contract.settings.settings(SamplingParams)` lists the fields with range and words."""

    max_tokens: int | None = setting(
        None, "tokens to generate at most; to the end of the context unless set", bounds=Bounds(ge=1)
    )
    temperature: float = setting(
        1.0, "what logits are divided by before a token is drawn; 0 is greedy", bounds=Bounds(ge=0)
    )
    top_k: int = setting(0, "keep the k likeliest tokens; 0 keeps all", bounds=Bounds(ge=0))
    top_p: float = setting(
        1.0, "keep the smallest set of likeliest tokens whose probability reaches this", bounds=Bounds(gt=0, le=1)
    )
    min_p: float = setting(0.0, "drop tokens less likely than this times the likeliest", bounds=Bounds(ge=0, le=1))
    seed: int | None = setting(None, "same request and seed, same output, whatever the load; random unless set")
    repetition_penalty: float = setting(
        1.0, "over prompt and output, as in CTRL (arXiv 1909.05858); 1 is off", bounds=Bounds(gt=0)
    )
    presence_penalty: float = setting(0.0, "over the output, as in OpenAI's API; 0 is off", bounds=Bounds())
    frequency_penalty: float = setting(0.0, "over the output, as in OpenAI's API; 0 is off", bounds=Bounds())
    logit_bias: Mapping[int, float] = setting(words="added to the logits of these token ids", default_factory=dict)
    stop: tuple[str, ...] = setting((), "texts that end the output; they are not part of it")
    stop_token_ids: frozenset[int] = setting(
        frozenset(), "ids that end the output, the model's end-of-sequence ids among them"
    )
    logprobs: int | None = setting(
        None,
        "log-probabilities of the chosen token and of this many likeliest ones; none unless set",
        bounds=Bounds(ge=0),
    )
    speculation: int | None = setting(
        None,
        "guesses of the next tokens to check in a step, at most; as many as the engine allows unless set. It changes how "
        "fast an answer comes",
        bounds=Bounds(ge=0),
    )


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural log-probabilities of one position under the model's own distribution, before penalties and temperature.

    Attributes:
        token_id: the chosen token.
        logprob: its log-probability.
        top: the likeliest tokens with theirs, likeliest first, ties by id.
        offset: where the chosen token's text begins in that of the output, in characters; tokens that make a character
            together begin where it does.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    offset: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutput:
    """What a step brought one request: an event of its stream.

    Attributes:
        text: text that is final now; empty while a character or a possible stop text is incomplete.
        token_ids: tokens chosen in this step; the one that ended the request included.
        logprobs: one entry per token of `token_ids` if they were asked for.
        finish_reason: set on the last event of a request and only there.
        stop_reason: the stop text or stop token id that ended it, if one did.
        timeout: the deadline that ended it, if one did: with finish reason `abort` if there is no answer yet, with
            `length` if there is a part of one.
        error: what went wrong, if `finish_reason` is `error`.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    timeout: Timeout | None = None
    error: str | None = None

    @property
    def failure(self) -> BentoKVError | None:
        """The error that this end is; None if the answer goes on, is complete, or was cut by a limit."""
        if self.finish_reason == "error":
            return DecoderError(self.error or "the request failed")
        if self.finish_reason != "abort":
            return None
        if self.timeout is None:
            return EngineClosedError("The request was aborted: the server is shutting down.")
        if self.timeout == "queue":
            return OutOfTimeError(
                "The request waited for a free slot for longer than it may; try again later, or with a longer "
                "max_queue_time.",
                code="queue_timeout",
            )
        return OutOfTimeError(
            "The request ran out of time before its first token; try again later, or with a longer max_time."
        )


class RequestOptions(TypedDict, total=False):
    """What a request may say besides its prompt and how to answer it: fields of `Submission` and of its `Deadlines`."""

    priority: int
    cache_salt: str | None
    client: str | None
    max_time: float | None
    max_queue_time: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One sequence to continue: what HTTP, `/generate` and Python alike make of what they are asked.

    Attributes:
        prompt_ids: at least one token id.
        params: how to choose tokens and when to stop.
        deadlines: how long it may wait and take; the engine's own where unset.
        id: unique among the requests alive; made up unless given.
    """

    prompt_ids: tuple[int, ...]
    params: SamplingParams
    deadlines: Deadlines = field(default_factory=Deadlines)
    priority: int = setting(0, "lower is more urgent, as in vLLM; among equals the first comes first")
    cache_salt: str | None = setting(
        None,
        "requests share cached prefixes only with those of the same salt, as in vLLM: who does not know it cannot find out "
        "by the clock what was asked before",
    )
    client: str | None = setting(None, "whose request it is: clients take turns, however many requests each has")
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def of(cls, prompt_ids: Sequence[int], params: SamplingParams, **options: Unpack[RequestOptions]) -> Submission:
        """What options with users' names ask for."""
        return Submission(
            prompt_ids=tuple(prompt_ids),
            params=params,
            deadlines=Deadlines(max_queue_time=options.get("max_queue_time"), max_time=options.get("max_time")),
            priority=options.get("priority", 0),
            cache_salt=options.get("cache_salt"),
            client=options.get("client"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(Submission):
    """A submission, and where its events go.

    Attributes:
        emit: called from the engine thread with every event, in order; it must not block or raise.
        context: where it was submitted, for those who record events; None if nobody cares.
    """

    emit: Callable[[StepOutput], None]
    context: contextvars.Context | None = None

    @classmethod
    def from_submission(
        cls, submission: Submission, emit: Callable[[StepOutput], None], context: contextvars.Context
    ) -> Request:
        """The submission as it is, with events that go to `emit`."""
        asked = {each.name: getattr(submission, each.name) for each in fields(Submission)}
        return cls(**asked, emit=emit, context=context)

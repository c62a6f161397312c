"""Generation over HTTP: choices of one answer run together in the engine, sent as a whole or event by event."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from bento_kv.engine.request import StepOutput, Submission
from bento_kv.engine.stream import TokenStream, entered
from bento_kv.engine.threads import in_thread
from bento_kv.errors import RequestError
from bento_kv.server import jsontext
from bento_kv.server.backend import Backend
from bento_kv.server.choices import Addition, AnswerForm, ChatChoice, TextChoice
from bento_kv.server.clients import Caller
from bento_kv.server.exchange import Exchange
from bento_kv.server.prompts import EncodedPrompt
from bento_kv.server.protocol import ChatRequest, CompletionRequest
from bento_kv.server.sampling import sampling_params
from bento_kv.text.message import MessageParser, PlainContent

_AHEAD = 64  # events that may be taken from their streams before they are sent; those that wait there are counted
Events = AsyncIterator[tuple[int, StepOutput]]
Additions = AsyncIterator[tuple[int, Addition]]


@dataclass(frozen=True, slots=True)
class Envelope:
    """What an answer and all its chunks have in common.

    Attributes:
        id: of the answer.
        object, chunk_object: OpenAI's name for the answer and for a chunk of it.
        model: the model that answers.
        fingerprint: changes when the served files do; None if the proof does not name them.
        created: Unix seconds.
    """

    id: str
    object: str
    chunk_object: str
    model: str
    fingerprint: str | None
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, request: ChatRequest | CompletionRequest, backend: Backend, request_id: str) -> Envelope:
        unique = request_id.removeprefix("req_")  # what one log says of an answer is found in the other
        digest = backend.verification.get("manifest_sha256")
        fingerprint = f"bkv-{digest[:12]}" if digest else None
        if isinstance(request, ChatRequest):
            objects = ("chat.completion", "chat.completion.chunk")
            return cls(f"chatcmpl-{unique}", *objects, backend.model_id, fingerprint)
        return cls(f"cmpl-{unique}", "text_completion", "text_completion", backend.model_id, fingerprint)

    def around(self, choices: list[dict[str, Any]], *, chunk: bool = False, **rest: Any) -> dict[str, Any]:
        """The document with these choices."""
        return {
            "id": self.id,
            "object": self.chunk_object if chunk else self.object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
            **rest,
        }


class Usage:
    """Token counts of an answer. A prompt counts once, however many choices continue it."""

    def __init__(self, prompts: Sequence[EncodedPrompt]) -> None:
        self._prompt = sum(len(prompt.ids) for prompt in prompts)
        self._completion = 0

    def add(self, output: StepOutput) -> None:
        self._completion += len(output.token_ids)

    def document(self) -> dict[str, int]:
        total = self._prompt + self._completion
        return {"prompt_tokens": self._prompt, "completion_tokens": self._completion, "total_tokens": total}


async def answer(
    exchange: Exchange, backend: Backend, request: ChatRequest | CompletionRequest, prompts: Sequence[EncodedPrompt]
) -> None:
    """Generate all choices and send them. The head of the answer goes out only once the engine has accepted them all.

    Raises:
        Problem: the caller may not ask for this priority.
        RequestError, QueueFullError, EngineClosedError: as `Engine.submit`.
        DecoderError, OutOfTimeError, EngineClosedError: there is no answer, or none to its end.
    """
    envelope = Envelope.of(request, backend, exchange.id)
    exchange.caller.check_priority(request.priority)
    submissions = _submissions(backend, request, prompts, exchange.caller, envelope.id)
    streams = [TokenStream(backend.engine, submission) for submission in submissions]
    choices = _choices(backend, request, prompts)
    usage = Usage(prompts)
    try:
        async with entered(backend.engine, streams), _merged(streams) as events:
            additions = _read(events, [PlainContent() for _ in streams], usage)
            if request.stream:
                await _send_stream(exchange, request, envelope, choices, usage, additions)
            else:
                await _send_whole(exchange, envelope, choices, usage, additions)
    except RequestError as error:
        error.param = _name_in(request, error.param)
        raise


async def _read(events: Events, parsers: Sequence[MessageParser], usage: Usage) -> Additions:
    """What each event adds to the message of its choice, which a parser of its own reads."""
    async for index, output in events:
        usage.add(output)
        yield index, Addition.read(output, parsers[index])


async def _send_whole(
    exchange: Exchange, envelope: Envelope, choices: Sequence[AnswerForm], usage: Usage, additions: Additions
) -> None:
    collected: list[list[Addition]] = [[] for _ in choices]
    async for index, addition in additions:
        collected[index].append(addition)

    def written() -> str:
        whole = [choice.whole(own) for choice, own in zip(choices, collected, strict=True)]
        return jsontext.dumps_in_pieces(envelope.around(whole, usage=usage.document()))

    # With log-probabilities it may be megabytes, which would hold up everybody's tokens.
    large = any(addition.logprobs for own in collected for addition in own)
    await exchange.send_text(await in_thread(written) if large else written())


async def _send_stream(
    exchange: Exchange,
    request: ChatRequest | CompletionRequest,
    envelope: Envelope,
    choices: Sequence[AnswerForm],
    usage: Usage,
    additions: Additions,
) -> None:
    no_usage_yet = {"usage": None} if request.include_usage else {}
    await exchange.start_events()
    async for index, addition in additions:
        deltas = choices[index].deltas(addition)
        if deltas:
            chunks = (envelope.around([delta], chunk=True, **no_usage_yet) for delta in deltas)
            await exchange.send_events(*map(jsontext.dumps, chunks))
    if request.include_usage:
        await exchange.send_events(jsontext.dumps(envelope.around([], chunk=True, usage=usage.document())))
    await exchange.send_events("[DONE]")
    await exchange.end_events()


def _submissions(
    backend: Backend,
    request: ChatRequest | CompletionRequest,
    prompts: Sequence[EncodedPrompt],
    caller: Caller,
    answer_id: str,
) -> list[Submission]:
    """One for each choice, prompt by prompt."""
    params = [sampling_params(request, backend.defaults, choice=number) for number in range(request.choices)]
    pairs = [(prompt, choice) for prompt in prompts for choice in params]
    if len(pairs) > backend.engine.places_for_one:
        raise RequestError(
            f"{len(prompts)} prompts with {len(params)} choices each are {len(pairs)} answers, and this server takes "
            f"{backend.engine.places_for_one} at once of one client; ask for fewer",
            param="n" if len(params) > 1 else "prompt",
        )
    return [
        Submission(
            prompt_ids=prompt.ids,
            params=choice,
            deadlines=request.deadlines,
            priority=request.priority or 0,
            cache_salt=caller.salt(request.cache_salt),
            client=caller.client,
            id=f"{answer_id}-{index}",
        )
        for index, (prompt, choice) in enumerate(pairs)
    ]


def _choices(
    backend: Backend, request: ChatRequest | CompletionRequest, prompts: Sequence[EncodedPrompt]
) -> list[AnswerForm]:
    """A choice for each stream, in the same order."""
    logprobs = request.likeliest is not None
    owners = [prompt for prompt in prompts for _ in range(request.choices)]
    if isinstance(request, ChatRequest):
        return [ChatChoice(index, backend.tokenizer, logprobs=logprobs) for index in range(len(owners))]
    return [
        TextChoice(index, backend.tokenizer, logprobs=logprobs, echo=prompt.echo) for index, prompt in enumerate(owners)
    ]


@asynccontextmanager
async def _merged(streams: Sequence[TokenStream]) -> AsyncIterator[Events]:
    """Events of all streams as they come, each with its stream's number."""
    queue: asyncio.Queue[tuple[int, StepOutput | Exception]] = asyncio.Queue(_AHEAD)
    pumps = [asyncio.create_task(_pump(number, stream, queue)) for number, stream in enumerate(streams)]
    try:
        yield _until_all_end(queue, len(streams))
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(number: int, stream: TokenStream, queue: asyncio.Queue[tuple[int, StepOutput | Exception]]) -> None:
    try:
        async for output in stream:
            await queue.put((number, output))
    except Exception as error:  # noqa: BLE001 - whoever reads the queue raises it
        await queue.put((number, error))


async def _until_all_end(queue: asyncio.Queue[tuple[int, StepOutput | Exception]], streams: int) -> Events:
    while streams:
        number, output = await queue.get()
        if isinstance(output, Exception):
            raise output
        if output.failure is not None:
            raise output.failure
        streams -= output.finish_reason is not None
        yield number, output


def _name_in(request: ChatRequest | CompletionRequest, param: str | None) -> str | None:
    """The engine's name of a field as the request's: a prompt is made of messages, and a limit has two names."""
    if not isinstance(request, ChatRequest):
        return param or "prompt"
    names = {"prompt": "messages", None: "messages"}
    if request.max_completion_tokens is not None:
        names["max_tokens"] = "max_completion_tokens"
    return names.get(param, param)

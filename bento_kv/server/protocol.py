"""The requests of the OpenAI-compatible routes: every field with its type, its range and the words that explain it.

Each field is in one of three classes, and none is ignored silently:
- **supported**: a field of a model below. `top_k`, `min_p`, `repetition_penalty`, `stop_token_ids`, `ignore_eos`,
  `priority` and `cache_salt` go beyond OpenAI's, under the names that other open servers gave them; so do `max_time`,
  transformers' name, and `max_queue_time` and `speculation`, under names of our own;
- **accepted**: changes nothing here (`ACCEPTED_WITHOUT_EFFECT`), is type-checked and left at that;
- **refused**: OpenAI has it and this server does not (`REFUSED_*`). It gets 400 with its name, unless its value asks
  for what happens anyway; that value is listed with it.
Any other name is unknown and gets 400 as well. `null` is the same as leaving a field out.

A description completes the sentence "'field' must be ...". Sources: OpenAI's API reference for Chat Completions and
Completions, as typed in the `openai` package.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    PlainValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from bento_kv.engine.deadlines import Deadlines
from bento_kv.engine.request import SamplingParams, Submission
from bento_kv.errors import RequestError
from bento_kv.server.fields import (
    TOKEN_ID_LIMIT,
    RawPrompt,
    engine_field,
    parse_logit_bias,
    parse_metadata,
    parse_prompts,
    parse_response_format,
    parse_stop,
)

MAX_CHOICES = 16
MAX_STOP_TOKEN_IDS = 128
MAX_PRIORITY = 100

ACCEPTED_WITHOUT_EFFECT = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
)
REFUSED_IN_CHAT: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "function_call": ("none",),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (),
    "prediction": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "reasoning_effort": (),
    "tool_choice": ("none",),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}
REFUSED_IN_COMPLETIONS: Mapping[str, tuple[Any, ...]] = {"suffix": ("",)}
REFUSED_IN_MESSAGES: Mapping[str, tuple[Any, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "refusal": (),
    "tool_call_id": (),
    "tool_calls": ([],),
}


class Body(BaseModel):
    """A JSON object whose fields are all known, and of the type they say: "5" is no integer and true no number."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())
    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, data: Any) -> Any:
        """Stops at the first name that is not known: a body of a hundred thousand makes one error, not as many."""
        if not isinstance(data, dict):
            return data
        for name, value in data.items():
            if name in cls.model_fields:
                continue
            if name not in cls.refused:
                raise PydanticCustomError("unknown_parameter", "unknown", {"name": name})
            # 0 is not false here, though Python holds them equal.
            if value is not None and not any(value == same and type(value) is type(same) for same in cls.refused[name]):
                raise PydanticCustomError("unsupported_parameter", "unsupported", {"name": name})
        return {name: value for name, value in data.items() if name in cls.model_fields and value is not None}


class TextPart(Body):
    """A part of a message's content."""

    type: Literal["text"] = Field(description="'text', the only kind of content this model takes")
    text: str = Field(description="a string")

    @model_validator(mode="before")
    @classmethod
    def _type_first(cls, data: Any) -> Any:
        """An image is refused for its type, not for the field that carries it."""
        if isinstance(data, dict) and isinstance(data.get("type"), str) and data["type"] != "text":
            return {"type": data["type"], "text": ""}
        return data


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class Message(Body):
    """A turn of a conversation. Its content is a string or a list of text parts, kept as a list."""

    refused = REFUSED_IN_MESSAGES
    role: Literal["system", "developer", "user", "assistant"] = Field(
        description="'system', 'developer', 'user' or 'assistant'"
    )
    content: Annotated[list[TextPart], FailFast(), BeforeValidator(_as_parts)] = Field(
        min_length=1, description="a string or a non-empty list of text parts"
    )
    name: str | None = Field(None, description="a string")

    def for_template(self) -> dict[str, str]:
        """What the chat template is given: text parts joined by newlines, and `developer` under the name that OpenAI
        gave it before and that templates know, `system`."""
        role = "system" if self.role == "developer" else self.role
        turn = {"role": role, "content": "\n".join(part.text for part in self.content)}
        return turn if self.name is None else {**turn, "name": self.name}


Messages = Annotated[list[Message], FailFast(), Field(min_length=1)]
MESSAGES = "a non-empty list of messages"


class StreamOptions(Body):
    """What a stream adds."""

    refused = {"include_obfuscation": (False,)}
    include_usage: bool | None = Field(None, description="true or false")


TokenId = Annotated[int, Field(ge=0, lt=TOKEN_ID_LIMIT)]


class GenerationRequest(Body):
    """What both generating routes take."""

    model: str = Field(description="a string, the name of the model")
    # The engine's ranges, narrower where OpenAI's are.
    max_tokens: int | None = engine_field(SamplingParams, "max_tokens", lt=TOKEN_ID_LIMIT)
    temperature: float | None = engine_field(SamplingParams, "temperature", le=2)
    top_p: float | None = engine_field(SamplingParams, "top_p", ge=0)
    top_k: int | None = engine_field(SamplingParams, "top_k", ge=-1, lt=TOKEN_ID_LIMIT, note="0 and -1 keep all")
    min_p: float | None = engine_field(SamplingParams, "min_p")
    repetition_penalty: float | None = engine_field(
        SamplingParams, "repetition_penalty", ge=0.01, le=10, note="1 is off"
    )
    presence_penalty: float | None = engine_field(SamplingParams, "presence_penalty", ge=-2, le=2)
    frequency_penalty: float | None = engine_field(SamplingParams, "frequency_penalty", ge=-2, le=2)
    speculation: int | None = engine_field(SamplingParams, "speculation", lt=TOKEN_ID_LIMIT, note="0 is off")
    max_time: float | None = engine_field(Deadlines, "max_time")
    max_queue_time: float | None = engine_field(Deadlines, "max_queue_time")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="a 64-bit integer")
    stop: Annotated[tuple[str, ...], PlainValidator(parse_stop)] = ()
    stop_token_ids: Annotated[list[TokenId], FailFast()] = Field(
        default_factory=list,
        max_length=MAX_STOP_TOKEN_IDS,
        description=f"a list of at most {MAX_STOP_TOKEN_IDS} token ids",
    )
    ignore_eos: bool | None = Field(None, description="true or false")
    logit_bias: Annotated[Mapping[int, float], PlainValidator(parse_logit_bias)] = {}
    n: int | None = Field(None, ge=1, le=MAX_CHOICES, description=f"an integer between 1 and {MAX_CHOICES}")
    stream: bool | None = Field(None, description="true or false")
    stream_options: StreamOptions | None = Field(None, description="an object")
    priority: int | None = engine_field(
        Submission, "priority", ge=-MAX_PRIORITY, le=MAX_PRIORITY, note="lower is more urgent"
    )
    cache_salt: str | None = Field(None, min_length=1, max_length=256, description="a string of 1 to 256 characters")

    user: str | None = Field(None, description="a string")
    metadata: Annotated[dict[str, str] | None, PlainValidator(parse_metadata)] = None
    store: bool | None = Field(None, description="true or false")
    service_tier: str | None = Field(None, description="a string")
    safety_identifier: str | None = Field(None, description="a string")
    prompt_cache_key: str | None = Field(None, description="a string")

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> GenerationRequest:
        if self.stream_options is not None and not self.stream:
            raise RequestError("'stream_options' is only allowed when 'stream' is true", param="stream_options")
        return self

    @property
    def choices(self) -> int:
        """Choices for each prompt."""
        return self.n or 1

    @property
    def deadlines(self) -> Deadlines:
        """How long the answer may take: `max_time` seconds in all, after which it is cut with finish reason `length`, and
        `max_queue_time` until its first step begins, after which it is given up."""
        return Deadlines(max_queue_time=self.max_queue_time, max_time=self.max_time)

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def token_limit(self) -> int | None:
        """Tokens to generate at most, if the request says."""
        return self.max_tokens

    @property
    def likeliest(self) -> int | None:
        """Of how many likeliest tokens log-probabilities are wanted beside the chosen one's; None for none at all."""
        raise NotImplementedError


class ChatRequest(GenerationRequest):
    """`POST /v1/chat/completions`."""

    refused = REFUSED_IN_CHAT
    messages: Messages = Field(description=MESSAGES)
    max_completion_tokens: int | None = engine_field(SamplingParams, "max_tokens", lt=TOKEN_ID_LIMIT)
    logprobs: bool | None = Field(None, description="true or false")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="an integer between 0 and 20")
    response_format: Annotated[None, PlainValidator(parse_response_format)] = None

    @model_validator(mode="after")
    def _fields_that_go_together(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError("'top_logprobs' is only allowed when 'logprobs' is true", param="top_logprobs")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise RequestError("'max_tokens' and 'max_completion_tokens' are one thing; set one", param="max_tokens")
        return self

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def likeliest(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(GenerationRequest):
    """`POST /v1/completions`. `prompt` is kept as a tuple of prompts, texts or token ids."""

    refused = REFUSED_IN_COMPLETIONS
    prompt: Annotated[tuple[RawPrompt, ...], PlainValidator(parse_prompts)]
    logprobs: int | None = Field(None, ge=0, le=5, description="an integer between 0 and 5")
    echo: bool | None = Field(None, description="true or false")
    best_of: int | None = Field(None, ge=1, le=MAX_CHOICES, description=f"an integer between 1 and {MAX_CHOICES}")

    @model_validator(mode="after")
    def _fields_that_go_together(self) -> CompletionRequest:
        if self.echo and self.logprobs is not None:
            raise RequestError("'echo' together with 'logprobs' is not supported", param="echo")
        if self.best_of is not None and self.best_of != self.choices:
            raise RequestError("'best_of' is only supported when it equals 'n'", param="best_of")
        return self

    @property
    def likeliest(self) -> int | None:
        return self.logprobs


def _as_in_openais(name: str) -> Any:
    """The field of that name as the OpenAI-compatible routes have it."""
    return copy(GenerationRequest.model_fields[name])


class TokenizeRequest(Body):
    """`POST /v1/tokenize`: the token ids of a text, or of a conversation as the chat template renders it."""

    model: str | None = Field(None, description="a string, the name of the model")
    prompt: str | None = Field(None, description="a string")
    messages: Messages = Field(default_factory=list, description=MESSAGES)
    add_special_tokens: bool | None = Field(None, description="true or false")

    @model_validator(mode="after")
    def _one_of_two(self) -> TokenizeRequest:
        if (self.prompt is None) != bool(self.messages):
            raise RequestError("either 'prompt' or 'messages' is required, and not both", param="prompt")
        if self.messages and self.add_special_tokens is not None:
            message = "'add_special_tokens' goes with 'prompt'; in a conversation the chat template decides"
            raise RequestError(message, param="add_special_tokens")
        return self


class DetokenizeRequest(Body):
    """`POST /v1/detokenize`: the text of token ids, special tokens included."""

    model: str | None = Field(None, description="a string, the name of the model")
    tokens: Annotated[list[TokenId], FailFast()] = Field(description="a list of token ids")


class NativeRequest(Body):
    """`POST /generate`; the model's own defaults where a field is left out."""

    prompt: str = Field(description="a string")
    max_tokens: int | None = _as_in_openais("max_tokens")
    temperature: float | None = _as_in_openais("temperature")
    seed: int | None = _as_in_openais("seed")
    priority: int | None = _as_in_openais("priority")
    cache_salt: str | None = _as_in_openais("cache_salt")
    max_time: float | None = _as_in_openais("max_time")
    max_queue_time: float | None = _as_in_openais("max_queue_time")

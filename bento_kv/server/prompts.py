"""From a body to what the engine takes: validation and tokenization, the work that grows with what a client sends.

Everything here may run in a thread of its own; it touches nothing that is shared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bento_kv.errors import ContextLengthError, RequestError
from bento_kv.server.backend import Backend
from bento_kv.server.fields import RawPrompt
from bento_kv.server.problems import no_such_model
from bento_kv.server.protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    GenerationRequest,
    TokenizeRequest,
)
from bento_kv.server.validation import parse


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as token ids, and its text if the answer is to begin with it."""

    ids: tuple[int, ...]
    echo: str = ""


Prepare = Callable[[bytes, Backend], tuple[ChatRequest | CompletionRequest, list[EncodedPrompt]]]


def chat_prompts(body: bytes, backend: Backend) -> tuple[ChatRequest, list[EncodedPrompt]]:
    """The request for a chat completion in `body`, and its one prompt.

    Raises:
        RequestError: the body is not such a request.
        Problem: it names another model.
    """
    request = parse(body, ChatRequest)
    check_model(request.model, backend)
    check_stop_tokens(request, backend)
    turns = [message.for_template() for message in request.messages]
    with _too_long_at("messages"):
        ids = backend.tokenizer.encode_chat(turns, room=_room(backend))
    return request, [EncodedPrompt(tuple(ids))]


def completion_prompts(body: bytes, backend: Backend) -> tuple[CompletionRequest, list[EncodedPrompt]]:
    """The request for completions in `body`, and its prompts.

    Raises:
        RequestError: the body is not such a request.
        Problem: it names another model.
    """
    request = parse(body, CompletionRequest)
    check_model(request.model, backend)
    check_stop_tokens(request, backend)
    return request, [_encode(prompt, backend, echo=bool(request.echo)) for prompt in request.prompt]


def tokenize(body: bytes, backend: Backend) -> dict[str, Any]:
    """The answer to a request for token ids.

    Raises:
        RequestError: the body is not such a request.
        Problem: it names another model.
    """
    request = parse(body, TokenizeRequest)
    check_model(request.model, backend)
    if request.messages:
        ids = backend.tokenizer.encode_chat([message.for_template() for message in request.messages])
    else:
        special = request.add_special_tokens is not False
        ids = backend.tokenizer.encode(request.prompt or "", add_special_tokens=special)
    return {"tokens": list(ids), "count": len(ids), "max_model_len": backend.max_length}


def detokenize(body: bytes, backend: Backend) -> dict[str, Any]:
    """The answer to a request for the text of token ids, special tokens included.

    Raises:
        RequestError: the body is not such a request, or has a token that the model does not have.
        Problem: it names another model.
    """
    request = parse(body, DetokenizeRequest)
    check_model(request.model, backend)
    check_token_ids(request.tokens, backend, "tokens")
    return {"prompt": backend.tokenizer.decode(request.tokens, skip_special_tokens=False)}


def check_model(name: str | None, backend: Backend) -> None:
    """Raise a 404 unless `name` is the model that is served, or left out where it may be."""
    if name is not None and name not in backend.model_names:
        raise no_such_model(name, backend.model_id)


def check_token_ids(ids: Sequence[int], backend: Backend, param: str) -> None:
    """Raise RequestError if the model has no token of one of the ids."""
    highest = max(ids, default=0)
    if highest >= backend.vocab_size:
        message = f"'{param}' has the token id {highest}; the model's go from 0 to {backend.vocab_size - 1}"
        raise RequestError(message, param=param, code="invalid_value")


def check_stop_tokens(request: GenerationRequest, backend: Backend) -> None:
    """A stop token that the model does not have would never stop anything: refused, not ignored."""
    check_token_ids(request.stop_token_ids, backend, "stop_token_ids")


@contextmanager
def _too_long_at(param: str) -> Iterator[None]:
    try:
        yield
    except ContextLengthError as error:
        error.param = param
        raise


def _room(backend: Backend) -> int:
    """Tokens that a prompt may have: all but one of the context's."""
    return backend.max_length - 1


def _encode(prompt: RawPrompt, backend: Backend, *, echo: bool) -> EncodedPrompt:
    if isinstance(prompt, str):
        with _too_long_at("prompt"):
            ids = backend.tokenizer.encode(prompt, room=_room(backend))
        return EncodedPrompt(tuple(ids), prompt if echo else "")
    check_token_ids(prompt, backend, "prompt")
    return EncodedPrompt(prompt, backend.tokenizer.decode(prompt, skip_special_tokens=False) if echo else "")

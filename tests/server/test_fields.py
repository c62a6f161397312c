"""Every field of OpenAI's requests is supported, accepted or refused, and known to be."""

from __future__ import annotations

import typing
from typing import Any

import httpx
import pytest
from openai.types import completion_create_params as completions
from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionStreamOptionsParam,
    ChatCompletionUserMessageParam,
)
from openai.types.chat import completion_create_params as chat

from bento_kv.server import protocol
from tests.server.world import MODEL

MESSAGES = [{"role": "user", "content": "say:ok|"}]
EXTENSIONS = {
    "top_k",
    "min_p",
    "repetition_penalty",
    "stop_token_ids",
    "ignore_eos",
    "priority",
    "cache_salt",
    "speculation",
    "max_time",
    "max_queue_time",
}
CASES: list[tuple[Any, type[protocol.Body], set[str]]] = [
    (chat.CompletionCreateParamsNonStreaming, protocol.ChatRequest, EXTENSIONS),
    (
        completions.CompletionCreateParamsNonStreaming,
        protocol.CompletionRequest,
        EXTENSIONS | (protocol.ACCEPTED_WITHOUT_EFFECT - {"user"}),
    ),
    (ChatCompletionUserMessageParam, protocol.Message, set()),
    (ChatCompletionAssistantMessageParam, protocol.Message, set()),
    (ChatCompletionStreamOptionsParam, protocol.StreamOptions, set()),
]


@pytest.mark.parametrize(("params", "body", "beyond"), CASES, ids=lambda case: getattr(case, "__name__", ""))
def test_every_field_of_the_openai_package_is_in_one_class(
    params: Any, body: type[protocol.Body], beyond: set[str]
) -> None:
    theirs = set(typing.get_type_hints(params))
    ours = set(body.model_fields)
    assert not ours & set(body.refused)
    assert theirs <= ours | set(body.refused), "a field that is in none of the classes"
    assert ours - theirs <= beyond


def test_accepted_fields_are_fields_and_nothing_reads_them() -> None:
    assert set(protocol.GenerationRequest.model_fields) >= protocol.ACCEPTED_WITHOUT_EFFECT


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_accepted_fields_change_nothing(http: httpx.Client, path: str) -> None:
    accepted = {
        "user": "someone",
        "metadata": {"a": "b"},
        "store": True,
        "service_tier": "flex",
        "safety_identifier": "x",
        "prompt_cache_key": "y",
    }
    assert set(accepted) == protocol.ACCEPTED_WITHOUT_EFFECT
    prompt = {"messages": MESSAGES} if "chat" in path else {"prompt": "say:ok|"}
    plain = http.post(path, json={"model": MODEL, **prompt}).json()
    full = http.post(path, json={"model": MODEL, **prompt, **accepted}).json()
    assert full["choices"] == plain["choices"]
    assert full["usage"] == plain["usage"]


@pytest.mark.parametrize("name", sorted(protocol.REFUSED_IN_CHAT))
def test_refused_fields_are_named(http: httpx.Client, name: str) -> None:
    response = http.post("/v1/chat/completions", json={"model": MODEL, "messages": MESSAGES, name: "something"})
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", name, "unsupported_parameter")
    assert f"'{name}' is not supported" in error["message"]


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in protocol.REFUSED_IN_CHAT.items() for value in (*values, None)]
    + [("response_format", {"type": "text"}), ("parallel_tool_calls", None)],
)
def test_values_that_ask_for_what_happens_anyway_are_taken(http: httpx.Client, name: str, value: Any) -> None:
    response = http.post("/v1/chat/completions", json={"model": MODEL, "messages": MESSAGES, name: value})
    assert response.status_code == 200, response.text

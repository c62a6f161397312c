"""Several tokens an event: what clients see is what they would see of one at a time, in fewer chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.server.world import MODEL, World, serving

TEXT = "naïve 🦜 parrots say naïve 🦜 things, and then say them again"


@pytest.fixture(scope="module")
def eager() -> Iterator[World]:
    """A server that guesses."""
    with serving(speculation=8) as world:
        yield world


def chat(client: openai.OpenAI, **fields: Any) -> Any:
    messages: list[Any] = [{"role": "user", "content": f"say:{TEXT}|"}]
    return client.chat.completions.create(model=MODEL, messages=messages, temperature=0, **fields)


@pytest.mark.parametrize(
    "fields",
    [{}, {"stop": ["them"]}, {"max_tokens": 40}, {"temperature": 1.0, "seed": 4}, {"n": 2, "presence_penalty": 0.1}],
    ids=str,
)
def test_a_whole_answer_is_the_same(client: openai.OpenAI, eager: World, fields: dict[str, Any]) -> None:
    for likeliest in ({}, {"logprobs": 3}):
        asked = {"model": MODEL, "prompt": f"say:{TEXT}|", "temperature": 0, **fields, **likeliest}
        plain = client.completions.create(**asked)
        with eager.client() as guessing:
            guessed = guessing.completions.create(**asked)
        assert guessed.choices == plain.choices
        assert guessed.usage == plain.usage


def test_a_stream_is_the_same_in_fewer_chunks(client: openai.OpenAI, eager: World) -> None:
    asked: dict[str, Any] = {"logprobs": True, "top_logprobs": 2, "stream_options": {"include_usage": True}}

    def heard(client: openai.OpenAI) -> tuple[str, list[Any], str | None, Any, int]:
        chunks = list(chat(client, stream=True, **asked))
        choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
        entries = [entry for choice in choices if choice.logprobs for entry in choice.logprobs.content or []]
        text = "".join(choice.delta.content or "" for choice in choices)
        return text, entries, choices[-1].finish_reason, chunks[-1].usage, len(chunks)

    plain = heard(client)
    with eager.client() as guessing:
        guessed = heard(guessing)
    assert guessed[:4] == plain[:4]
    assert guessed[0] == TEXT
    assert len(guessed[1]) == guessed[3].completion_tokens == len(TEXT.encode()) + 1
    assert guessed[4] < plain[4] / 2


def test_a_text_stream_is_the_same(client: openai.OpenAI, eager: World) -> None:
    def heard(client: openai.OpenAI) -> dict[str, list[Any]]:
        chunks = client.completions.create(model=MODEL, prompt=f"say:{TEXT}|", logprobs=2, temperature=0, stream=True)
        choices = [chunk.choices[0] for chunk in chunks]
        parts = [choice.logprobs for choice in choices if choice.logprobs is not None]
        names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        whole = {name: [item for part in parts for item in getattr(part, name)] for name in names}
        return {**whole, "text": ["".join(choice.text for choice in choices)]}

    with eager.client() as guessing:
        assert heard(guessing) == heard(client)


def test_a_request_may_ask_for_fewer_guesses_or_none(eager: World) -> None:
    with eager.client() as guessing:
        chunks = [len(list(chat(guessing, stream=True, extra_body={"speculation": most}))) for most in (0, 2, 8)]
    assert chunks[0] > chunks[1] > chunks[2]


@pytest.mark.parametrize("asked", [1, -1, 1.5, "2", True])
def test_guesses_that_are_not_to_be_had_are_refused(http: httpx.Client, asked: Any) -> None:
    body = {"model": MODEL, "prompt": "say:ok|", "speculation": asked}
    response = http.post("/v1/completions", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "speculation"
    assert http.post("/v1/completions", json={**body, "speculation": 0}).status_code == 200

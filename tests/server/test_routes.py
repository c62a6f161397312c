"""The routes beside generation."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import openai
import pytest

from bento_kv.server.app import openai_app
from tests.server.world import EOS, MODEL, VERIFICATION, World


@pytest.mark.parametrize("name", [MODEL, MODEL.split("/")[1]])
def test_a_model_has_several_names(client: openai.OpenAI, name: str) -> None:
    assert client.models.retrieve(name).id == MODEL
    message: Any = {"role": "user", "content": "say:a|"}
    assert client.chat.completions.create(model=name, messages=[message]).model == MODEL
    assert client.completions.create(model=name, prompt="say:a|").model == MODEL


@pytest.mark.parametrize("name", ["org", "org/other", "ORG/PARROT-1B", "", "/parrot-1b", "../parrot-1b"])
def test_another_name_is_not_found(http: httpx.Client, name: str) -> None:
    """In OpenAI's form, whatever is asked of it."""
    asked: dict[str, dict[str, Any]] = {
        "chat/completions": {"messages": [{"role": "user", "content": "say:a|"}]},
        "completions": {"prompt": "say:a|"},
        "tokenize": {"prompt": "a"},
        "detokenize": {"tokens": [1]},
    }
    for route, body in asked.items():
        response = http.post(f"/v1/{route}", json={**body, "model": name})
        assert response.status_code == 404
        error = response.json()["error"]
        assert (error["param"], error["code"], error["type"]) == ("model", "model_not_found", "invalid_request_error")
        assert error["message"] == f"The model {name!r} does not exist here; this server has {MODEL!r}."


def test_models(client: openai.OpenAI, world: World) -> None:
    models = client.models.list().data
    assert [(model.id, model.object, model.created, model.owned_by) for model in models] == [
        (MODEL, "model", world.created, "bento_kv")
    ]
    assert client.models.retrieve(MODEL) == models[0]


def test_head_is_get_without_the_body(http: httpx.Client) -> None:
    response = http.head("/v1/models")
    assert (response.status_code, response.content) == (200, b"")


def test_verification_is_the_proof_as_it_is(http: httpx.Client) -> None:
    assert http.get("/v1/verification").json() == VERIFICATION


@pytest.mark.parametrize("text", ["", "naïve 🦜", "x" * 10_000])
def test_tokenize_and_back(http: httpx.Client, world: World, text: str) -> None:
    answer = http.post("/v1/tokenize", json={"model": MODEL, "prompt": text}).json()
    assert answer == {"tokens": list(text.encode()), "count": len(text.encode()), "max_model_len": world.max_length}
    back = http.post("/v1/detokenize", json={"tokens": answer["tokens"]}).json()
    assert back == {"prompt": text}


def test_tokenize_a_conversation_as_a_chat_request_would(http: httpx.Client, client: openai.OpenAI) -> None:
    messages = [
        {"role": "developer", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "say:b|"}]},
    ]
    answer = http.post("/v1/tokenize", json={"messages": messages}).json()
    chat = client.chat.completions.create(model=MODEL, messages=messages)  # type: ignore[arg-type]
    assert chat.usage is not None
    assert answer["count"] == len(answer["tokens"]) == chat.usage.prompt_tokens


def test_detokenize_shows_special_tokens(http: httpx.Client) -> None:
    assert http.post("/v1/detokenize", json={"tokens": [104, EOS]}).json() == {"prompt": "h<eos>"}
    assert http.post("/v1/detokenize", json={"tokens": []}).json() == {"prompt": ""}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("tokenize", {}, "prompt"),
        ("tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "prompt"),
        ("tokenize", {"messages": []}, "messages"),
        ("tokenize", {"prompt": 5}, "prompt"),
        ("tokenize", {"prompt": "a", "add_special_tokens": "no"}, "add_special_tokens"),
        (
            "tokenize",
            {"messages": [{"role": "user", "content": "a"}], "add_special_tokens": False},
            "add_special_tokens",
        ),
        ("tokenize", {"prompt": "a", "more": 1}, "more"),
        ("detokenize", {}, "tokens"),
        ("detokenize", {"tokens": "a"}, "tokens"),
        ("detokenize", {"tokens": [1, "a"]}, "tokens[1]"),
        ("detokenize", {"tokens": [257]}, "tokens"),
        ("detokenize", {"tokens": [2**70]}, "tokens[0]"),
    ],
)
def test_what_is_wrong_is_named(http: httpx.Client, path: str, body: dict[str, object], param: str) -> None:
    response = http.post(f"/v1/{path}", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_the_backend_may_be_found_when_it_is_asked_for(world: World) -> None:
    found: list[World] = []

    async def run() -> None:
        transport = httpx.ASGITransport(openai_app(lambda: found[0]))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as late:
            found.append(world)
            assert (await late.get("/v1/models")).json()["data"][0]["id"] == MODEL
            answer = await late.post("/v1/completions", json={"model": MODEL, "prompt": "say:late|"})
            assert answer.json()["choices"][0]["text"] == "late"

    asyncio.run(run())

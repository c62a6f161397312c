"""What is wrong with a request is said in OpenAI's form, with the field's path, before anything else happens."""

from __future__ import annotations

import json
import math
from typing import Any

import httpx
import openai
import pytest

from bento_kv.server.app import openai_app
from tests.server.world import JSON, MODEL, World, serving

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "say:ok|"}


def error_of(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"].startswith("req_")
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


IN_BOTH: list[tuple[dict[str, Any], str, str]] = [
    ({"model": None}, "model", "'model' is required"),
    ({"model": 5}, "model", "'model' must be a string, the name of the model, got 5"),
    ({"temperature": "hot"}, "temperature", "'temperature' must be a number between 0 and 2, got 'hot'"),
    ({"temperature": 2.1}, "temperature", "got 2.1"),
    ({"temperature": -0.1}, "temperature", "between 0 and 2"),
    ({"temperature": True}, "temperature", "got true"),
    ({"temperature": [1]}, "temperature", "got a list"),
    ({"temperature": 10**400}, "temperature", "got 1000"),
    ({"top_p": 1.5}, "top_p", "'top_p' must be a number between 0 and 1"),
    ({"top_k": -2}, "top_k", "at least -1"),
    ({"top_k": 1.0}, "top_k", "got 1.0"),
    ({"min_p": 2}, "min_p", "between 0 and 1"),
    ({"repetition_penalty": 0}, "repetition_penalty", "between 0.01 and 10"),
    ({"presence_penalty": 3}, "presence_penalty", "between -2 and 2"),
    ({"frequency_penalty": -3}, "frequency_penalty", "between -2 and 2"),
    ({"max_tokens": 0}, "max_tokens", "an integer of at least 1, got 0"),
    ({"max_tokens": "5"}, "max_tokens", "got '5'"),
    ({"max_tokens": 5.0}, "max_tokens", "got 5.0"),
    ({"max_tokens": 10**9}, "max_tokens", "50000"),
    ({"n": 0}, "n", "an integer between 1 and 16"),
    ({"n": 17}, "n", "an integer between 1 and 16"),
    ({"seed": 2**63}, "seed", "a 64-bit integer"),
    ({"seed": "7"}, "seed", "a 64-bit integer"),
    ({"stop": ["a"] * 5}, "stop", "at most 4 items, got 5"),
    ({"stop": ""}, "stop", "'stop' must be a non-empty string"),
    ({"stop": ["a", ""]}, "stop[1]", "'stop[1]' must be a non-empty string, got ''"),
    ({"stop": 7}, "stop", "a list of up to 4 strings"),
    ({"stop": "a" * 1025}, "stop", "a string of at most 1024 characters, got 'aaa"),
    ({"stop": ["b", "a" * 1025]}, "stop[1]", "a string of at most 1024 characters, got 'aaa"),
    ({"stop_token_ids": [1, -1]}, "stop_token_ids[1]", "a token id, got -1"),
    ({"stop_token_ids": [1, True]}, "stop_token_ids[1]", "a token id, got true"),
    ({"stop_token_ids": [99999]}, "stop_token_ids", "the model's go from 0 to 256"),
    ({"stop_token_ids": [1] * 129}, "stop_token_ids", "at most 128"),
    ({"ignore_eos": 1}, "ignore_eos", "true or false, got 1"),
    ({"stream": "yes"}, "stream", "true or false, got 'yes'"),
    ({"logit_bias": {"a": 1}}, "logit_bias", "must be token ids, got 'a'"),
    ({"logit_bias": {"1": 101}}, "logit_bias.1", "between -100 and 100, got 101"),
    ({"logit_bias": {"1": "x"}}, "logit_bias.1", "between -100 and 100, got 'x'"),
    ({"logit_bias": {"1": 1, "01": 2}}, "logit_bias", "names token 1 twice"),
    ({"logit_bias": {"999": 1}}, "logit_bias", "999"),
    ({"logit_bias": [1]}, "logit_bias", "got a list"),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias", "at most 1024"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "only allowed when 'stream' is true"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage", "true or false"),
    (
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        "stream_options.include_obfuscation",
        "not sup",
    ),
    ({"stream": True, "stream_options": {"other": 1}}, "stream_options.other", "not a known field"),
    ({"user": 5}, "user", "a string, got 5"),
    ({"metadata": {"a": 5}}, "metadata.a", "a string, got 5"),
    ({"metadata": {str(i): "" for i in range(17)}}, "metadata", "up to 16 strings"),
    ({"temprature": 1}, "temprature", "'temprature' is not a known field"),
]
IN_CHAT: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": None}, "messages", "'messages' is required"),
    ({"messages": []}, "messages", "a non-empty list of messages, got an empty list"),
    ({"messages": "hi"}, "messages", "a non-empty list of messages, got 'hi'"),
    ({"messages": ["hi"]}, "messages[0]", "'messages[0]' must be an object, got 'hi'"),
    ({"messages": [USER, {"role": "tool", "content": "x"}]}, "messages[1].role", "or 'assistant', got 'tool'"),
    ({"messages": [USER, {"content": "x"}]}, "messages[1].role", "'messages[1].role' is required"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "'messages[0].content' is required"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "a non-empty list of text parts, got 5"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "got an empty list"),
    ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]", "must be an object, got 'x'"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]},
        "messages[0].content[0].type",
        "'messages[0].content[0].type' must be 'text', the only kind of content this model takes, got 'image_url'",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", "is required"),
    ({"messages": [{**USER, "tool_calls": [{}]}]}, "messages[0].tool_calls", "not supported"),
    ({"messages": [{**USER, "mood": "good"}]}, "messages[0].mood", "not a known field"),
    ({"max_completion_tokens": 10**9}, "max_completion_tokens", "50000"),
    ({"max_completion_tokens": 5, "max_tokens": 5}, "max_tokens", "set one"),
    ({"logprobs": 1}, "logprobs", "true or false"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "between 0 and 20"),
    ({"top_logprobs": 2}, "top_logprobs", "only allowed when 'logprobs' is true"),
    ({"response_format": {"type": "json_object"}}, "response_format", "only supported as"),
    ({"response_format": "text"}, "response_format", "an object with a type"),
    ({"prompt": "hi"}, "prompt", "not a known field"),
]
IN_TEXT: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": None}, "prompt", "'prompt' is required"),
    ({"prompt": ""}, "prompt", "empty"),
    ({"prompt": []}, "prompt", "got an empty list"),
    ({"prompt": 5}, "prompt", "a string, a list of strings"),
    ({"prompt": ["a", 5]}, "prompt[1]", "as its neighbours, got 5"),
    ({"prompt": [5, "a"]}, "prompt[1]", "a token id, got 'a'"),
    ({"prompt": [True]}, "prompt[0]", "got true"),
    ({"prompt": [[1], []]}, "prompt[1]", "at least one token id"),
    ({"prompt": [[1], [2, -1]]}, "prompt[1][1]", "a token id, got -1"),
    ({"prompt": [257]}, "prompt", "257"),
    ({"prompt": [257], "echo": True}, "prompt", "257"),
    ({"prompt": [2**40]}, "prompt[0]", "a token id"),
    ({"prompt": ["a"] * 129}, "prompt", "at most 128 items, got 129"),
    ({"logprobs": 6}, "logprobs", "between 0 and 5"),
    ({"logprobs": True}, "logprobs", "got true"),
    ({"echo": True, "logprobs": 1}, "echo", "together with 'logprobs'"),
    ({"best_of": 2}, "best_of", "equals 'n'"),
    ({"suffix": "end"}, "suffix", "not supported"),
    ({"messages": [USER]}, "messages", "not a known field"),
]


@pytest.mark.parametrize(
    ("path", "fields", "param", "words"),
    [(CHAT, *case) for case in IN_BOTH + IN_CHAT] + [(TEXT, *case) for case in IN_BOTH + IN_TEXT],
)
def test_a_wrong_field_is_named(http: httpx.Client, path: str, fields: dict[str, Any], param: str, words: str) -> None:
    prompt: dict[str, Any] = {"messages": [USER]} if path == CHAT else {"prompt": "say:ok|"}
    body = json.dumps({"model": MODEL, **prompt, **fields})
    error = error_of(http.post(path, content=body))
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert words in error["message"]
    assert len(error["message"]) < 400


@pytest.mark.parametrize("field", ["temperature", "unheard_of"])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_does_not_have(http: httpx.Client, field: str, number: float) -> None:
    body = json.dumps({"model": MODEL, "messages": [USER], field: number})
    assert "is not a JSON number" in error_of(http.post(CHAT, content=body))["message"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"{", "not valid JSON"),
        (b"{}}", "not valid JSON"),
        (b"[]", "must be a JSON object, got an empty list"),
        (b'"text"', "must be a JSON object, got 'text'"),
        (b"null", "must be a JSON object, got null"),
        (b"\xff\xfe{}", "not valid Unicode"),
        (b'{"model": "\xed\xa0\x80"}', "not valid Unicode"),
        (b'{"model": "\\ud800"}', "not valid Unicode"),
        (b'{"\\udc00": 1}', "not valid Unicode"),
        (b'{"model": "a", "model": "b"}', "the key 'model' comes twice"),
        (b'{"temperature": 1e999}', "too large"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "nested too deeply"),
    ],
    ids=lambda value: str(value[:24]) if isinstance(value, bytes) else "",
)
@pytest.mark.parametrize("path", [CHAT, TEXT, "/v1/tokenize", "/v1/detokenize"])
def test_a_body_that_is_not_json(http: httpx.Client, path: str, body: bytes, words: str) -> None:
    error = error_of(http.post(path, content=body))
    assert words in error["message"]
    assert (error["param"], error["code"]) == (None, "invalid_json")


@pytest.mark.parametrize("path", [CHAT, TEXT, "/v1/tokenize", "/v1/detokenize"])
def test_a_web_page_cannot_post_here(world: World, path: str) -> None:
    """Browsers ask a server before they post JSON to it from another site, and nothing else."""
    for kind in ({}, {"content-type": "text/plain"}, {"content-type": "multipart/form-data; boundary=x"}):
        error = error_of(httpx.post(world.url + path, content=b'{"prompt": "hi"}', headers=kind), 415)
        assert error["code"] == "unsupported_media_type"


def test_who_sends_a_key_need_not_say_that_it_is_json() -> None:
    with serving(app_options={"api_key": " secret\n"}) as world:
        for kind in ({}, {"content-type": "text/plain"}, JSON):
            headers = {"authorization": "Bearer secret", **kind}
            answer = httpx.post(world.url + "/v1/tokenize", content=b'{"prompt": "hi"}', headers=headers)
            assert answer.json()["count"] == 2
            assert error_of(httpx.post(world.url + "/v1/tokenize", content=b"--x", headers=headers), 400)


def test_json_may_say_its_encoding(http: httpx.Client) -> None:
    body = json.dumps({"model": MODEL, "messages": [USER]})
    assert http.post(CHAT, content=body, headers={"content-type": "Application/JSON; charset=utf-8"}).status_code == 200


@pytest.mark.parametrize("digits", [400, 999, 4299, 4300, 5000])
@pytest.mark.parametrize("name", ["max_tokens", "seed", "top_k", "n", "priority", "temperature", "max_time", "stop"])
def test_numbers_of_thousands_of_digits_are_refused_in_a_word(http: httpx.Client, name: str, digits: int) -> None:
    for number in ("1" * digits, "-" + "1" * digits):
        body = f'{{"model": "{MODEL}", "prompt": "hi", "{name}": {number}}}'
        assert len(error_of(http.post(TEXT, content=body))["message"]) < 200


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_prompt_that_leaves_no_room_names_both_numbers(path: str) -> None:
    with serving(max_length=64) as world, httpx.Client(base_url=world.url) as http:
        prompt = {"messages": [{"role": "user", "content": "x" * 100}]} if path == CHAT else {"prompt": "x" * 100}
        error = error_of(http.post(path, json={"model": MODEL, "stream": True, **prompt}))
    length = 116 if path == CHAT else 100
    assert (error["param"], error["code"]) == (next(iter(prompt)), "context_length_exceeded")
    assert str(length) in error["message"]
    assert "64" in error["message"]


@pytest.mark.parametrize("path", [CHAT, "/v1/tokenize"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit(path: str, chunked: bool) -> None:
    with serving(app_options={"max_body_bytes": 1000}) as world, httpx.Client(base_url=world.url, headers=JSON) as http:
        body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "x" * 2000}]}).encode()
        content = (body[i : i + 100] for i in range(0, len(body), 100)) if chunked else body
        error = error_of(http.post(path, content=content), 413)
        assert (error["type"], error["code"]) == ("invalid_request_error", "request_too_large")
        assert "1000 bytes" in error["message"]
        fits = json.dumps({"model": MODEL, "messages": [USER]})
        assert http.post(CHAT, content=fits + " " * (1000 - len(fits))).status_code == 200


@pytest.mark.parametrize("path", ["/v1", "/v1/", "/v1/nothing", "/v1/chat", "/v1/embeddings", "/elsewhere", "/v1/a/b"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_an_unknown_route(http: httpx.Client, path: str, method: str) -> None:
    error = error_of(http.request(method, path), 404)
    assert error["code"] == "unknown_url"
    assert path in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", CHAT, "POST"),
        ("PUT", TEXT, "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("DELETE", f"/v1/models/{MODEL}", "GET, HEAD"),
        ("PATCH", "/v1/verification", "GET, HEAD"),
    ],
)
def test_a_wrong_method(http: httpx.Client, method: str, path: str, allowed: str) -> None:
    response = http.request(method, path)
    assert error_of(response, 405)["code"] == "method_not_allowed"
    assert response.headers["allow"] == allowed


@pytest.fixture(scope="module")
def locked() -> Any:
    with serving(app_options={"api_key": "sésame"}) as world:
        yield world


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer wrong", "Bearer sesame", "Basic sésame", "sésame", "Bearer sésame x"],
)
def test_without_the_key(locked: World, header: str | None) -> None:
    headers = {} if header is None else {"authorization": header.encode()}
    for method, path in (("POST", CHAT), ("GET", "/v1/models"), ("GET", "/v1/verification"), ("GET", "/v1/nothing")):
        response = httpx.request(method, locked.url + path, headers=headers)
        error = error_of(response, 401)
        assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
        assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("scheme", [b"Bearer", b"bearer"])
def test_with_the_key(locked: World, scheme: bytes) -> None:
    headers = {"authorization": scheme + b" " + "sésame".encode()}
    assert httpx.get(locked.url + "/v1/models", headers=headers).status_code == 200


def test_an_empty_key_is_a_mistake(world: World) -> None:
    with pytest.raises(ValueError, match="empty"):
        openai_app(world, api_key=" ")


def test_the_openai_package_raises_its_own_exceptions(client: openai.OpenAI, locked: World) -> None:
    with pytest.raises(openai.NotFoundError) as bad:
        client.chat.completions.create(model="other", messages=[USER])  # type: ignore[list-item]
    assert (bad.value.param, bad.value.code, bad.value.type) == ("model", "model_not_found", "invalid_request_error")
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("other")
    assert missing.value.code == "model_not_found"
    with locked.client() as stranger, pytest.raises(openai.AuthenticationError) as unknown:
        stranger.models.list()
    assert unknown.value.code == "invalid_api_key"

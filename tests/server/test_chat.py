"""Chat completions as the openai package sees them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from tests.server.world import EOS, MODEL, World

UNICODE = "naïve 🦜 日本語 e\u0301 "


def say(text: str) -> list[Any]:
    return [{"role": "user", "content": f"say:{text}|"}]


def babble() -> list[Any]:
    return [{"role": "user", "content": "go on"}]


def test_a_whole_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=say("hello"))
    choice = answer.choices[0]
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == MODEL
    assert answer.system_fingerprint == "bkv-0123456789ab"
    assert (choice.index, choice.message.role, choice.message.content) == (0, "assistant", "hello")
    assert (choice.finish_reason, choice.logprobs, choice.message.refusal) == ("stop", None, None)
    assert answer._request_id
    assert answer._request_id.startswith("req_")


def test_usage_counts_every_token_and_the_prompt_once(client: openai.OpenAI, world: World) -> None:
    prompt = len(world.tokenizer.encode_chat(say("hello")))
    answer = client.chat.completions.create(model=MODEL, messages=say("hello"), n=3)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == prompt
    assert answer.usage.completion_tokens == 3 * len("hello.")
    assert answer.usage.total_tokens == prompt + 18


def stream(client: openai.OpenAI, **fields: Any) -> list[ChatCompletionChunk]:
    return list(client.chat.completions.create(model=MODEL, stream=True, **fields))


@pytest.mark.parametrize("text", ["hello", UNICODE, ""])
def test_a_stream_joined_is_the_whole_answer(client: openai.OpenAI, text: str) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=say(text))
    chunks = stream(client, messages=say(text))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    assert whole.choices[0].message.content == text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason == "stop"


def test_the_shape_of_a_stream(http: httpx.Client) -> None:
    body = {"model": MODEL, "messages": say("hi"), "stream": True, "stream_options": {"include_usage": True}}
    response = http.post("/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    events = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert events.pop() == "[DONE]"
    chunks = [json.loads(event) for event in events]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk["id"], chunk["created"], chunk["system_fingerprint"]) for chunk in chunks}) == 1
    usage = chunks.pop()
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 3
    assert all(chunk["usage"] is None for chunk in chunks)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": "", "refusal": None}
    assert deltas[1:] == [{"content": "h"}, {"content": "i"}, {}]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]


def test_without_include_usage_no_chunk_speaks_of_usage(http: httpx.Client) -> None:
    response = http.post("/v1/chat/completions", json={"model": MODEL, "messages": say("hi"), "stream": True})
    assert "usage" not in response.text


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_a_limit_ends_with_length(client: openai.OpenAI, field: str) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=say("hello"), **{field: 3})  # type: ignore[arg-type]
    assert answer.choices[0].message.content == "hel"
    assert answer.choices[0].finish_reason == "length"


def test_stop_texts_are_left_out_of_whole_answers_and_streams(client: openai.OpenAI) -> None:
    fields = {"messages": say("one two three"), "stop": ["zzz", "two t"]}
    whole = client.chat.completions.create(model=MODEL, **fields)  # type: ignore[call-overload]
    joined = "".join(chunk.choices[0].delta.content or "" for chunk in stream(client, **fields))
    assert joined == whole.choices[0].message.content == "one "
    assert whole.choices[0].finish_reason == "stop"


def test_stop_tokens_add_to_the_models_own_and_ignore_eos_leaves_them_out(client: openai.OpenAI) -> None:
    def run(**extra: Any) -> Any:
        return client.chat.completions.create(model=MODEL, messages=say("abc"), max_tokens=8, extra_body=extra).choices[
            0
        ]

    stopped = run(stop_token_ids=[ord("c")])
    assert (stopped.message.content, stopped.finish_reason) == ("ab", "stop")
    assert run(stop_token_ids=[ord("z")]).finish_reason == "stop"
    assert run(ignore_eos=True).finish_reason == "length"
    assert run(ignore_eos=True, stop_token_ids=[EOS]).finish_reason == "stop"


def test_a_seed_repeats_an_answer_and_its_choices_differ(client: openai.OpenAI) -> None:
    def run(n: int, seed: int) -> list[str | None]:
        answer = client.chat.completions.create(model=MODEL, messages=babble(), max_tokens=24, n=n, seed=seed)
        assert [choice.index for choice in answer.choices] == list(range(n))
        return [choice.message.content for choice in answer.choices]

    three = run(3, 7)
    assert three == run(3, 7)
    assert len(set(three)) == 3
    assert run(1, 7) == three[:1]
    assert run(1, -7) != run(1, 8)


def test_a_stream_of_several_choices_holds_the_same_answers(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"messages": babble(), "max_tokens": 24, "n": 3, "seed": 7}
    whole = client.chat.completions.create(model=MODEL, **fields)
    texts, roles = ["", "", ""], [0, 0, 0]
    for chunk in stream(client, **fields):
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        roles[choice.index] += choice.delta.role == "assistant"
    assert texts == [choice.message.content for choice in whole.choices]
    assert roles == [1, 1, 1]


def test_temperature_zero_and_top_p_zero_are_greedy(client: openai.OpenAI) -> None:
    def run(**fields: Any) -> str | None:
        answer = client.chat.completions.create(model=MODEL, messages=babble(), max_tokens=24, **fields)
        return answer.choices[0].message.content

    greedy = run(temperature=0)
    assert run(temperature=0) == run(top_p=0) == run(extra_body={"top_k": 1}) == run(extra_body={"min_p": 1}) == greedy
    assert run(temperature=0, logit_bias={str(ord("#")): 100}) == "#" * 24
    assert run(temperature=0, extra_body={"repetition_penalty": 5}) != greedy


def test_null_is_unset(http: httpx.Client) -> None:
    names = ("temperature", "top_p", "top_k", "seed", "stop", "n", "logprobs", "max_tokens", "tools", "response_format")
    nulls = dict.fromkeys((*names, "user", "metadata", "logit_bias", "stream", "stream_options"))
    response = http.post("/v1/chat/completions", json={"model": MODEL, "messages": say("ok"), **nulls})
    assert response.json()["choices"][0]["message"]["content"] == "ok"


def test_an_answer_may_be_sent_back_as_history(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=say("ok"))
    history = [*say("ok"), answer.choices[0].message, *say("again")]
    again = client.chat.completions.create(model=MODEL, messages=history)
    assert again.choices[0].message.content == "again"


def test_text_parts_are_joined_and_developer_is_system(client: openai.OpenAI, world: World) -> None:
    parts = [{"type": "text", "text": "say:"}, {"type": "text", "text": "hi|"}]
    turns: list[Any] = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts, "name": "al"}]
    answer = client.chat.completions.create(model=MODEL, messages=turns)
    assert answer.choices[0].message.content == "\nhi"
    same = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "say:\nhi|"}]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(world.tokenizer.encode_chat(same))


def test_logprobs(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"messages": say("é!"), "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(model=MODEL, **fields)
    assert whole.choices[0].logprobs is not None
    entries = whole.choices[0].logprobs.content
    assert entries is not None
    assert [entry.token for entry in entries] == ["\ufffd", "\ufffd", "!", "<eos>"]
    assert bytes(entries[0].bytes or []) + bytes(entries[1].bytes or []) == "é".encode()
    assert all(len(entry.top_logprobs) == 2 for entry in entries)
    assert all(entry.top_logprobs[0].bytes == entry.bytes for entry in entries)
    assert all(-1e-6 < entry.logprob <= 0 for entry in entries)
    streamed = [
        entry
        for chunk in stream(client, **fields)
        if (logprobs := chunk.choices[0].logprobs) is not None
        for entry in logprobs.content or ()
    ]
    assert streamed == entries


def test_logprobs_without_top(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=say("a"), logprobs=True)
    assert answer.choices[0].logprobs is not None
    assert [entry.top_logprobs for entry in answer.choices[0].logprobs.content or ()] == [[], []]


def test_what_the_template_refuses_is_the_clients_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=[{"role": "assistant", "content": "?"}])
    assert caught.value.param == "messages"


def test_the_async_client_and_many_at_once(world: World) -> None:
    async def run() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{world.url}/v1", api_key="none", max_retries=0) as client:
            answers = await asyncio.gather(
                *(client.chat.completions.create(model=MODEL, messages=say(f"number {i}")) for i in range(20))
            )
        return [answer.choices[0].message.content for answer in answers]

    assert asyncio.run(run()) == [f"number {i}" for i in range(20)]

"""Text completions as the openai package sees them."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.server.world import MODEL, World, serving


def test_a_whole_answer(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="say:hello|")
    assert (answer.object, answer.id[:5], answer.model) == ("text_completion", "cmpl-", MODEL)
    choice = answer.choices[0]
    assert (choice.index, choice.text, choice.finish_reason, choice.logprobs) == (0, "hello", "stop", None)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (10, 6, 16)


@pytest.mark.parametrize("text", ["hello", "naïve 🦜 日本語", ""])
def test_a_stream_joined_is_the_whole_answer(client: openai.OpenAI, text: str) -> None:
    chunks = list(client.completions.create(model=MODEL, prompt=f"say:{text}|", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == text
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "stop"
    assert {chunk.object for chunk in chunks} == {"text_completion"}


def test_a_stream_with_usage(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True}
    *chunks, last = client.completions.create(model=MODEL, prompt="say:hi|", stream=True, stream_options=options)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == 10
    assert all(chunk.usage is None for chunk in chunks)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("form", ["texts", "ids"])
def test_a_batch_of_prompts_keeps_its_order(client: openai.OpenAI, world: World, stream: bool, form: str) -> None:
    texts = [f"say:prompt {i}|" for i in range(3)]
    prompt: Any = texts if form == "texts" else [world.tokenizer.encode(text) for text in texts]
    answers = [""] * 6
    if stream:
        for chunk in client.completions.create(model=MODEL, prompt=prompt, n=2, stream=True):
            answers[chunk.choices[0].index] += chunk.choices[0].text
    else:
        whole = client.completions.create(model=MODEL, prompt=prompt, n=2)
        assert [choice.index for choice in whole.choices] == list(range(6))
        answers = [choice.text for choice in whole.choices]
        assert whole.usage is not None
        assert whole.usage.prompt_tokens == sum(map(len, texts))
    assert answers == ["prompt 0"] * 2 + ["prompt 1"] * 2 + ["prompt 2"] * 2


def test_one_prompt_of_token_ids(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=list(b"say:ids|"))
    assert answer.choices[0].text == "ids"


@pytest.mark.parametrize("prompt", ["say:é|", list("say:é|".encode())])
def test_echo(client: openai.OpenAI, prompt: Any) -> None:
    whole = client.completions.create(model=MODEL, prompt=prompt, echo=True)
    chunks = client.completions.create(model=MODEL, prompt=prompt, echo=True, stream=True)
    assert whole.choices[0].text == "".join(chunk.choices[0].text for chunk in chunks) == "say:é|é"


def test_best_of_equal_to_n(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="say:a|", n=2, best_of=2)
    assert [choice.text for choice in answer.choices] == ["a", "a"]


def test_logprobs(client: openai.OpenAI) -> None:
    whole = client.completions.create(model=MODEL, prompt="say:aé!|", logprobs=2).choices[0].logprobs
    assert whole is not None
    assert whole.tokens == ["a", "\ufffd", "\ufffd", "!", "<eos>"]
    assert whole.text_offset == [0, 1, 1, 2, 3]
    assert whole.token_logprobs is not None
    assert all(-1e-6 < logprob <= 0 for logprob in whole.token_logprobs)
    assert whole.top_logprobs is not None
    assert all(token in top and len(top) <= 3 for token, top in zip(whole.tokens, whole.top_logprobs, strict=True))
    chunks = client.completions.create(model=MODEL, prompt="say:aé!|", logprobs=2, stream=True)
    parts = [chunk.choices[0].logprobs for chunk in chunks]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [item for part in parts if part is not None for item in getattr(part, name)] == getattr(whole, name)


@pytest.mark.parametrize(
    ("said", "text", "offsets"),
    [
        (b"\xe4a", "\ufffda", [0, 1, 2]),
        (b"\xff\xffa", "\ufffd\ufffda", [0, 1, 2, 3]),
        (b"a\xff\xc3\xa9b", "a\ufffdéb", [0, 1, 2, 2, 3, 4]),
        (b"\xe4\xe4\xbd\xa0", "\ufffd你", [0, 1, 1, 1, 2]),
        (b"\xe4\xbda", "\ufffda", [0, 0, 1, 2]),
    ],
)
def test_offsets_behind_bytes_that_never_become_a_character(
    client: openai.OpenAI, said: bytes, text: str, offsets: list[int]
) -> None:
    choice = client.completions.create(model=MODEL, prompt=list(b"say:" + said + b"|"), logprobs=0).choices[0]
    assert choice.text == text
    assert choice.logprobs is not None
    assert choice.logprobs.text_offset == offsets


def test_logprobs_zero_has_the_chosen_token_alone(client: openai.OpenAI) -> None:
    logprobs = client.completions.create(model=MODEL, prompt="say:a|", logprobs=0).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.top_logprobs is not None
    assert [list(top) for top in logprobs.top_logprobs] == [["a"], ["<eos>"]]


def test_left_out_max_tokens_goes_to_the_end_of_the_context() -> None:
    with serving(max_length=40) as world, world.client() as client:
        answer = client.completions.create(model=MODEL, prompt="go on")
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 40

"""Between the text of an answer and what is sent of it stands a parser; whole and streamed answers both go through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from bento_kv.engine.request import StepOutput, TokenLogprobs
from bento_kv.server.choices import Addition, AnswerForm, ChatChoice, TextChoice
from bento_kv.text.message import Content, MessageParser, PlainContent
from tests.server.world import ByteTokenizer

PIECES = ["Th", "", "e answer", " is 42."]


class HoldsBack:
    """Is never certain of the last three characters."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, text: str) -> Sequence[Content]:
        text = self._held + text
        self._held = text[-3:]
        return (Content(text[:-3]),) if text[:-3] else ()

    def finish(self) -> Sequence[Content]:
        return (Content(self._held),)


def _outputs() -> list[StepOutput]:
    return [
        StepOutput(
            text=piece,
            logprobs=(TokenLogprobs(65, -1.0, ((65, -1.0),)),),
            finish_reason="stop" if place == len(PIECES) - 1 else None,
        )
        for place, piece in enumerate(PIECES)
    ]


def _chat() -> AnswerForm:
    return ChatChoice(0, ByteTokenizer(), logprobs=True)


def _text() -> AnswerForm:
    return TextChoice(0, ByteTokenizer(), logprobs=True, echo="Q: ")


@pytest.mark.parametrize("parser", [PlainContent, HoldsBack])
@pytest.mark.parametrize("form", [_chat, _text])
def test_a_streamed_answer_is_the_whole_one(
    form: Callable[[], AnswerForm], parser: Callable[[], MessageParser]
) -> None:
    reader = parser()
    additions = [Addition.read(output, reader) for output in _outputs()]
    whole = form().whole(additions)
    streamed = form()
    deltas = [delta for addition in additions for delta in streamed.deltas(addition)]
    text = "".join(delta["delta"].get("content", "") if "delta" in delta else delta["text"] for delta in deltas)
    assert text == (whole["message"]["content"] if "message" in whole else whole["text"])
    assert text.endswith("The answer is 42.")
    assert [delta["finish_reason"] for delta in deltas if delta["finish_reason"]] == ["stop"]
    key = "content" if "message" in whole else "tokens"
    assert sum(len(delta["logprobs"][key]) for delta in deltas if delta["logprobs"]) == len(whole["logprobs"][key])


def test_plain_content_is_the_text_as_it_comes() -> None:
    parser = PlainContent()
    assert [parser.push("a"), parser.push(""), parser.finish()] == [(Content("a"),), (), ()]

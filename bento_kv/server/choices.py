"""Choices of an answer in OpenAI's two dialects, as a whole and as the deltas of a stream.

Forms as in OpenAI's API reference ("The chat completion object", "The chat completion chunk object", "The completion
object").
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from bento_kv.engine.detokenizer import INCOMPLETE
from bento_kv.engine.request import FinishReason, StepOutput, TokenLogprobs
from bento_kv.server.backend import TextTokenizer
from bento_kv.text.message import Content, MessageParser

_LOWEST_LOGPROB = -9999.0  # OpenAI's stand-in for minus infinity, which JSON has no word for

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Addition:
    """What one event of the engine adds to an answer: parts of its message, and what is said of its tokens."""

    parts: tuple[Content, ...]
    logprobs: tuple[TokenLogprobs, ...]
    finish_reason: FinishReason | None

    @classmethod
    def read(cls, output: StepOutput, parser: MessageParser) -> Addition:
        """The event, its text read by the answer's parser. Whole and streamed answers both come of these."""
        parts = [*parser.push(output.text)]
        if output.finish_reason is not None:
            parts += parser.finish()
        return cls(tuple(parts), output.logprobs, output.finish_reason)

    @property
    def text(self) -> str:
        """Of all its parts."""
        return "".join(part.text for part in self.parts)


class AnswerForm(Protocol):
    """One answer to one prompt in the form of an API, fed with what each event adds, in order."""

    def deltas(self, addition: Addition) -> list[Json]:
        """What the event adds, as `choices` entries of chunks: none, or one for each chunk."""
        ...

    def whole(self, additions: Sequence[Addition]) -> Json:
        """The `choices` entry that all events make."""
        ...


class ChatChoice:
    """A message of the assistant.

    Args:
        index: its place among the choices.
        tokenizer: to spell out tokens of log-probabilities.
        logprobs: whether they were asked for.
    """

    def __init__(self, index: int, tokenizer: TextTokenizer, *, logprobs: bool) -> None:
        self._index = index
        self._tokenizer = tokenizer
        self._wanted = logprobs
        self._begun = False

    def deltas(self, addition: Addition) -> list[Json]:
        deltas = []
        if not self._begun:
            self._begun = True
            deltas.append(self._delta({"role": "assistant", "content": "", "refusal": None}))
        if addition.text or addition.logprobs:
            deltas.append(self._delta({"content": addition.text}, logprobs=self._logprobs(addition.logprobs)))
        if addition.finish_reason is not None:
            deltas.append(self._delta({}, finish_reason=addition.finish_reason))
        return deltas

    def whole(self, additions: Sequence[Addition]) -> Json:
        content = "".join(addition.text for addition in additions)
        return {
            "index": self._index,
            "message": {"role": "assistant", "content": content, "refusal": None},
            "logprobs": self._logprobs(_logprobs_of(additions)),
            "finish_reason": additions[-1].finish_reason,
        }

    def _delta(self, delta: Json, *, logprobs: Json | None = None, finish_reason: str | None = None) -> Json:
        return {"index": self._index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}

    def _logprobs(self, entries: Iterable[TokenLogprobs]) -> Json | None:
        if not self._wanted:
            return None
        content = [
            {
                **self._token(entry.token_id, entry.logprob),
                "top_logprobs": [self._token(token_id, logprob) for token_id, logprob in entry.top],
            }
            for entry in entries
        ]
        return {"content": content, "refusal": None}

    def _token(self, token_id: int, logprob: float) -> Json:
        raw = self._tokenizer.token_bytes(token_id)
        return {"token": _spell(raw), "logprob": max(logprob, _LOWEST_LOGPROB), "bytes": list(raw)}


class TextChoice:
    """A continuation of a text.

    Args:
        index: its place among the choices.
        tokenizer: to spell out tokens of log-probabilities.
        logprobs: whether they were asked for.
        echo: the prompt's text, if the continuation is to begin with it.
    """

    def __init__(self, index: int, tokenizer: TextTokenizer, *, logprobs: bool, echo: str = "") -> None:
        self._index = index
        self._tokenizer = tokenizer
        self._wanted = logprobs
        self._echo = echo
        self._offsets = _Offsets()

    def deltas(self, addition: Addition) -> list[Json]:
        text = self._echo + addition.text
        self._echo = ""
        if not text and not addition.logprobs and addition.finish_reason is None:
            return []
        return [self._entry(text, addition.logprobs, addition.finish_reason)]

    def whole(self, additions: Sequence[Addition]) -> Json:
        text = self._echo + "".join(addition.text for addition in additions)
        return self._entry(text, _logprobs_of(additions), additions[-1].finish_reason)

    def _entry(self, text: str, entries: Iterable[TokenLogprobs], finish_reason: str | None) -> Json:
        logprobs = self._logprobs(entries) if self._wanted else None
        return {"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}

    def _logprobs(self, entries: Iterable[TokenLogprobs]) -> Json:
        forms: Json = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for entry in entries:
            raw = self._tokenizer.token_bytes(entry.token_id)
            likeliest: dict[str, float] = {}
            for token_id, logprob in (*entry.top, (entry.token_id, entry.logprob)):
                # Tokens that are pieces of characters may be spelled alike; the likeliest of them speaks.
                likeliest.setdefault(_spell(self._tokenizer.token_bytes(token_id)), max(logprob, _LOWEST_LOGPROB))
            forms["tokens"].append(_spell(raw))
            forms["token_logprobs"].append(max(entry.logprob, _LOWEST_LOGPROB))
            forms["top_logprobs"].append(likeliest)
            forms["text_offset"].append(self._offsets.of(entry.offset, raw))
        return forms


class _Offsets:
    """Where tokens begin in a text whose bytes are not all characters.

    The engine holds text back while a character may be incomplete, and gives the tokens of a malformed run the offset of
    its beginning. Which of its bytes will never be a character shows in the bytes.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._begin = -1  # of the run
        self._settled = 0  # characters of it before the next token

    def of(self, offset: int, raw: bytes) -> int:
        """The offset of the next token, in characters.

        Args:
            offset: as the engine has it.
            raw: the token's bytes.
        """
        if offset != self._begin:
            self._begin, self._settled = offset, 0
            self._decoder.reset()
        pending = bool(self._decoder.getstate()[0])
        if not pending and INCOMPLETE not in _spell(raw):
            return offset + self._settled
        first = self._decoder.decode(raw[:1])
        broken = pending and first.startswith(INCOMPLETE)  # the bytes before it end here, and are one character
        found = offset + self._settled + broken
        self._settled += len(first) + len(self._decoder.decode(raw[1:]))
        return found


def _logprobs_of(additions: Sequence[Addition]) -> Iterable[TokenLogprobs]:
    return (entry for addition in additions for entry in addition.logprobs)


def _spell(raw: bytes) -> str:
    return raw.decode("utf-8", errors="replace")

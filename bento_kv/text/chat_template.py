"""Chat templates: the model's own Jinja text, rendered as transformers renders it, without transformers.

What a template may rely on is described in transformers' documentation ("Writing a chat template"): trimmed blocks, loop
controls, `raise_exception`, `strftime_now`, a `tojson` that escapes no HTML, and `generation` blocks, which mark what
the assistant said for training and here only contain it.

It is rendered in another process, with limits: see `rendering`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from bento_kv.errors import ManifestError, RequestError, TemplateLimitError
from bento_kv.text.renderer import RENDERERS

_MAX_BYTES = 2**20  # of a template; the longest known has a fiftieth


class ChatTemplate:
    """A compiled template, that has been tried.

    Args:
        text: of the template.
        special_tokens: `bos_token`, `eos_token`, ...: what templates call them and their text.

    Attributes:
        literals: texts that are spelled out in it, and those of its special tokens.

    Raises:
        ManifestError: it is not a template, or takes more than it may for a conversation of one word.
    """

    def __init__(self, text: str, special_tokens: Mapping[str, str]) -> None:
        if len(text.encode()) > _MAX_BYTES:
            raise ManifestError(f"the chat template has more than {_MAX_BYTES} bytes")
        self._text = text
        self._special_tokens = dict(special_tokens)
        self._marks: dict[str, str] = {}
        answer = self._ask(None, datetime.now())
        if "literals" not in answer:
            raise ManifestError(f"the chat template is not valid: {answer.get('invalid') or _too_much(answer)}")
        self.literals: list[str] = answer["literals"]
        if "over" in (answer := self._ask([{"role": "user", "content": "Hi"}], datetime.now())):
            raise ManifestError(f"the chat template cannot be used: {_too_much(answer)}")

    def marked(self, marks: Mapping[str, str]) -> ChatTemplate:
        """The template with `marks` put in the place of texts that it writes of its own, and of none that it looks for."""
        marked = object.__new__(ChatTemplate)
        marked.__dict__ = {**self.__dict__, "_marks": dict(marks)}
        return marked

    def render(self, messages: Sequence[Mapping[str, Any]], *, now: datetime | None = None) -> str:
        """The messages as the model was trained to read them, the assistant's turn opened.

        Args:
            messages: turns of the conversation.
            now: what the template may take the date from; the time unless given.

        Raises:
            RequestError: the template refuses the messages.
            TemplateLimitError: it takes more than it may for them.
        """
        answer = self._ask(list(messages), now or datetime.now())
        if "over" in answer:
            raise TemplateLimitError(f"the model's chat template fails on these messages: {_too_much(answer)}")
        if "rendered" not in answer:
            why = answer.get("refused") or answer["invalid"]
            raise RequestError(f"the model's chat template refuses these messages: {why}", param="messages")
        rendered: str = answer["rendered"]
        return rendered

    def _ask(self, messages: list[Mapping[str, Any]] | None, now: datetime) -> dict[str, Any]:
        request = {"text": self._text, "tokens": self._special_tokens, "marks": self._marks, "now": now.isoformat()}
        try:
            return RENDERERS.ask({**request, "messages": messages})
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(f"messages are not made of what JSON has: {error}", param="messages") from error


def _too_much(answer: Mapping[str, Any]) -> str:
    return f"it takes more than {answer['over']}"

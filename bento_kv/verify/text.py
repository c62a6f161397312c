"""The export layer at its edge: the served tokenizer and chat template against transformers' own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from bento_kv.errors import BentoKVError
from bento_kv.manifest import Check
from bento_kv.tokenizer import Tokenizer
from bento_kv.verify.checks import holds

PROBES = (
    "",
    " ",
    "Hello, world!",
    " leading and trailing ",
    "two  spaces,   three,\ttab\n\nand two lines\r\n",
    "naïve café, Straße, Ελλάδα, Москва",
    "中文、日本語、한국어。",
    "🙂 👩‍👩‍👧 🇫🇷 é é",
    "1234567890 3.14159 1e-9",
    "def f(x):\n    return x  # 4 spaces\n",
    "x" * 300,
    " " * 40 + "far right",
    "\u00a0\u200b\ufeff",
)
CHATS: tuple[tuple[Mapping[str, str], ...], ...] = (
    ({"role": "user", "content": "Hello"},),
    ({"role": "system", "content": "Be brief."}, {"role": "user", "content": " Hi\n"}),
    (
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "One."},
        {"role": "user", "content": "Two? 🙂"},
    ),
)


class TextReference(Protocol):
    """What transformers makes of a text."""

    def encode(self, text: str) -> list[int]: ...

    def render_chat(self, messages: Sequence[Mapping[str, str]]) -> str | None:
        """The chat template's rendering, None if there is no template or it refuses the messages."""
        ...

    @property
    def special_tokens(self) -> Sequence[str]: ...


def check_text(directory: Path, reference: TextReference) -> list[Check]:
    """Tokens of probe texts, special tokens in text among them, and of rendered chats."""
    tokenizer = Tokenizer(directory)
    probes = [*PROBES, *(f"a{token} b" for token in reference.special_tokens)]
    differing = [repr(text[:40]) for text in probes if tokenizer.encode(text) != reference.encode(text)]
    chats = [
        f"{len(chat)} messages: {_short(served)} is {_short(expected)} in transformers"
        for chat in CHATS
        if (served := _render(tokenizer, chat)) != (expected := reference.render_chat(chat))
    ]
    return [
        holds(
            "tokenizer-parity", differing, f"of {len(probes)} texts, those with other token ids than transformers gives"
        ),
        holds("chat-template-parity", chats, f"of {len(CHATS)} chats, those rendered otherwise than by transformers"),
    ]


def _render(tokenizer: Tokenizer, chat: Sequence[Mapping[str, str]]) -> str | None:
    try:
        return tokenizer.render_chat(chat)
    except BentoKVError:
        return None


def _short(text: str | None) -> str:
    return "refused" if text is None else repr(text[:60])

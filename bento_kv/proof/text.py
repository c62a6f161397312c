"""The export at its edge: the served tokenizer and chat template against transformers' own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from bento_kv.contract.checks import holds
from bento_kv.contract.verification import Check
from bento_kv.errors import BentoKVError, TemplateLimitError
from bento_kv.proof.texts import CHATS, PROBES
from bento_kv.text.tokenizer import Tokenizer

_SHUFFLED = 24
_SHUFFLED_TOKENS = 16


class TextReference(Protocol):
    """What transformers makes of a text."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...

    def render_chat(self, messages: Sequence[Mapping[str, str]]) -> str | None:
        """The chat template's rendering, None if there is no template or it refuses the messages."""
        ...

    @property
    def special_tokens(self) -> Sequence[str]:
        """Texts of all tokens that were added to the vocabulary, the special ones among them."""
        ...


def check_text(directory: Path, reference: TextReference) -> list[Check]:
    """Tokens of probe texts and of rendered chats, with special tokens in them, and the way back."""
    tokenizer = Tokenizer(directory)
    chats = [(chat, _render(tokenizer, chat), reference.render_chat(chat)) for chat in CHATS]
    texts = [*PROBES, *_with_special(reference.special_tokens), *(served for _, served, _ in chats if served)]
    sequences = _sequences([tokenizer.encode(text) for text in texts])
    return [
        holds(
            "tokenizer-parity",
            [_short(text) for text in texts if not _same_ids(tokenizer, reference, text)]
            + [_short(text) for chat, text, _ in chats if text and not _same_chat(tokenizer, reference, chat, text)],
            f"of {len(texts)} texts, those with other token ids than transformers gives; of conversations too, unless a "
            "message holds a control token, which is text here and a token there",
        ),
        holds(
            "detokenizer-parity",
            [str(ids[:12]) for ids in sequences if not _same_text(tokenizer, reference, ids)],
            f"of {len(sequences)} sequences of token ids, those with another text than transformers gives",
        ),
        holds(
            "chat-template-parity",
            [
                f"{' '.join(turn['role'] for turn in chat)}: {_short(served)} is {_short(expected)} in transformers"
                for chat, served, expected in chats
                if served != expected
            ],
            f"of {len(chats)} chats, those rendered otherwise than by transformers",
        ),
    ]


def _with_special(tokens: Sequence[str]) -> list[str]:
    """Each token at the start, in the middle, at the end, doubled, alone, and broken."""
    forms = ("{0}a", "a{0} b", "a {0}", "a{0}{0}b", "{0}", " {0} \n{0}")
    return [form.format(token) for token in tokens for form in forms] + [token[:-1] for token in tokens]


def _sequences(encoded: Sequence[list[int]]) -> list[list[int]]:
    """Sequences to decode: whole texts, and their tokens out of order, as a model may say them."""
    seen = sorted({token for ids in encoded for token in ids})
    rng = np.random.default_rng(0)
    shuffled = [rng.choice(seen, _SHUFFLED_TOKENS).tolist() for _ in range(_SHUFFLED if seen else 0)]
    return [*encoded, *shuffled, *([token] for token in seen)]


def _same_ids(tokenizer: Tokenizer, reference: TextReference, text: str) -> bool:
    return all(
        tokenizer.encode(text, add_special_tokens=special) == reference.encode(text, add_special_tokens=special)
        for special in (True, False)
    )


def _same_chat(
    tokenizer: Tokenizer, reference: TextReference, chat: Sequence[Mapping[str, str]], rendered: str
) -> bool:
    """Whether the conversation's ids are those of its rendering, or a message holds what is a token in transformers only."""
    if any(token.strip() and token in turn["content"] for token in reference.special_tokens for turn in chat):
        return True
    return tokenizer.encode_chat(chat) == reference.encode(rendered, add_special_tokens=False)


def _same_text(tokenizer: Tokenizer, reference: TextReference, ids: Sequence[int]) -> bool:
    return all(
        tokenizer.decode(ids, skip_special_tokens=skip) == reference.decode(ids, skip_special_tokens=skip)
        for skip in (True, False)
    )


def _render(tokenizer: Tokenizer, chat: Sequence[Mapping[str, str]]) -> str | None:
    try:
        return tokenizer.render_chat(chat)
    except TemplateLimitError:  # transformers knows no limits
        raise
    except BentoKVError:
        return None


def _short(text: str | None) -> str:
    return "refused" if text is None else repr(text[:60])

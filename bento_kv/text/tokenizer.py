"""Text to token ids and back, as the model's own tokenizer does it, without transformers.

The export writes `tokenizer.json` with transformers, and the proof compares the two. Serving needs the Rust tokenizer
alone: transformers would import torch wherever it is installed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import tokenizers

from bento_kv.contract.companions import TOKENIZER, TOKENIZER_CONFIG, read_companion
from bento_kv.errors import ContextLengthError, ManifestError, RequestError, TokenizerError
from bento_kv.text.bounds import longest_token
from bento_kv.text.chat_template import ChatTemplate
from bento_kv.text.guard import MessageGuard
from bento_kv.text.native import native

_MANY_IDS = 1024  # decoded without the interpreter's lock from here on; fewer are decoded sooner with it
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Tokenizer:
    """The tokenizer of a decoder directory. Its methods may be called from any thread, and let other threads run while
    they work on much.

    Args:
        directory: holds `tokenizer.json` and `tokenizer_config.json`, and `chat_template.jinja` if the model chats.
        parse_special_tokens: whether control tokens in the messages of a conversation are control tokens. By default they
            are text, and only the template's own are.

    Raises:
        ManifestError: they cannot be loaded.
    """

    def __init__(self, directory: Path, *, parse_special_tokens: bool = False) -> None:
        try:
            config = read_companion(directory / TOKENIZER_CONFIG)
            document = read_companion(directory / TOKENIZER)
        except ValueError as error:
            raise ManifestError(str(error)) from error
        try:
            text = (directory / TOKENIZER).read_text(encoding="utf-8")
            self._backend = native(tokenizers.Tokenizer.from_str, text)
        except (OSError, ValueError, TokenizerError) as error:
            raise ManifestError(
                f"{directory / TOKENIZER} is not a tokenizer ({error}): copy it again from the model it belongs to"
            ) from error
        self._backend.no_truncation()
        self._backend.no_padding()
        self._special = {token: added.content for token, added in self._backend.get_added_tokens_decoder().items()}
        decoders = _decoders(text)
        self._byte_level = _byte_alphabet() if "ByteLevel" in decoders else None
        self._byte_fallback = "ByteFallback" in decoders
        self._template = _chat_template(directory, config)
        self._longest_token = longest_token(document, set(map(self._spelled, self._backend.get_vocab())))
        self._guard: MessageGuard | None = None
        if self._template is not None and not parse_special_tokens:
            self._guard = MessageGuard(text, self._template, partial(self.encode, add_special_tokens=False))

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    def encode(self, text: str, *, add_special_tokens: bool = True, room: int | None = None) -> list[int]:
        """Token ids of a text, with what the model wants around it (a beginning-of-sequence token) unless told not to.

        Args:
            room: tokens that there is room for; a text that is longer for certain is refused before it is tokenized.

        Raises:
            ContextLengthError: the text has more tokens than `room`, whatever they are.
            TokenizerError: the tokenizer fails on it.
        """
        self._check_room(room, text)
        # `encode` would keep the interpreter's lock, and every other thread from running.
        return native(self._backend.encode_batch_fast, [text], add_special_tokens=add_special_tokens)[0].ids

    def render_chat(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The chat template's rendering, with the assistant's turn opened.

        Raises:
            RequestError: the model has no chat template, or the template refuses the messages.
        """
        if self._template is None:
            raise RequestError(
                "this model has no chat template; use /v1/completions with a plain prompt", param="messages"
            )
        return self._template.render(messages)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], *, room: int | None = None) -> list[int]:
        """Token ids of `render_chat`, which has the special tokens that the model wants; `room` and errors as there and as
        in `encode`.

        Control tokens that a message spells out are text, unless `parse_special_tokens` was set.
        """
        if self._guard is not None:
            return self._guard.encode(messages, partial(self._check_room, room))
        return self.encode(self.render_chat(messages), add_special_tokens=False, room=room)

    def encode_prompt(
        self, prompt: str | Sequence[int] | Sequence[Mapping[str, Any]], *, room: int | None = None
    ) -> list[int]:
        """Token ids of whatever a prompt may be: ids, chat messages, or a text; `room` and errors as in `encode`.

        A text is what a user says if the model chats, and the text to continue if it does not.
        """
        if isinstance(prompt, str):
            turn = [{"role": "user", "content": prompt}]
            return self.encode_chat(turn, room=room) if self.has_chat_template else self.encode(prompt, room=room)
        messages = [item for item in prompt if isinstance(item, Mapping)]
        ids = [item for item in prompt if isinstance(item, int)]
        if len(messages) != len(prompt) and len(ids) != len(prompt):
            raise RequestError("a prompt is a text, a list of messages or a list of token ids", param="prompt")
        return self.encode_chat(messages, room=room) if messages else ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids, spaces as they are; bytes that form no character become U+FFFD.

        Raises:
            TokenizerError: the tokenizer fails on them.
        """
        if len(ids) < _MANY_IDS:
            return native(self._backend.decode, list(ids), skip_special_tokens=skip_special_tokens)
        return native(self._backend.decode_batch, [list(ids)], skip_special_tokens=skip_special_tokens)[0]

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token stands for behind others; they need not be whole characters."""
        if token_id in self._special:
            return self._special[token_id].encode()
        token = self._backend.id_to_token(token_id)
        if token is None:
            return b""
        if self._byte_level is not None:
            return bytes(self._byte_level[symbol] for symbol in token if symbol in self._byte_level)
        if self._byte_fallback and (byte := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        return self.decode([*self._anchor, token_id]).removeprefix(self.decode(self._anchor)).encode()

    @cached_property
    def _anchor(self) -> list[int]:
        """A token with text: behind it a decoder drops no space, and joins what it joins."""
        usual = (token for token in range(self._backend.get_vocab_size()) if token not in self._special)
        return next(([token] for token in usual if self.decode([token]).isalnum()), [])

    def _check_room(self, room: int | None, text: str) -> None:
        if room is None or self._longest_token is None:
            return
        least = -(-len(text.encode()) // self._longest_token)
        if least > room:
            raise ContextLengthError(
                f"the prompt has at least {least} tokens, more than the {room} that leave room for an answer; shorten it"
            )

    def _spelled(self, token: str) -> bytes:
        """What a token of the vocabulary stands for, or more bytes than that."""
        if self._byte_level is not None and all(symbol in self._byte_level for symbol in token):
            return bytes(self._byte_level[symbol] for symbol in token)
        byte = _BYTE_TOKEN.fullmatch(token) if self._byte_fallback else None
        return bytes([int(byte[1], 16)]) if byte else token.encode()


def _chat_template(directory: Path, config: Mapping[str, Any]) -> ChatTemplate | None:
    path = directory / "chat_template.jinja"
    if not path.is_file():
        return None
    # A special token is its text, or a record that has it as `content`.
    named = {name: value for name, value in config.items() if name.endswith("_token") and value is not None}
    tokens = {
        name: str(value.get("content", "")) if isinstance(value, Mapping) else str(value)
        for name, value in named.items()
    }
    try:
        return ChatTemplate(path.read_text(encoding="utf-8"), tokens)
    except (OSError, UnicodeError) as error:
        raise ManifestError(f"{path} cannot be read as UTF-8 text ({error}): copy it again from the model") from error


def _decoders(tokenizer_json: str) -> set[str]:
    decoder = json.loads(tokenizer_json).get("decoder") or {}
    return {part.get("type") for part in (decoder, *decoder.get("decoders", []))}


def _byte_alphabet() -> dict[str, int]:
    """The symbols that stand for bytes in byte-level BPE: printable bytes for themselves, the rest from U+0100 on.

    Source: GPT-2's encoder, as the tokenizers library has it.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    symbols = {chr(byte): byte for byte in printable}
    symbols.update({chr(0x100 + n): byte for n, byte in enumerate(rest)})
    return symbols

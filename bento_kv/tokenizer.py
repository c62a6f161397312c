"""Text to token ids and back, as the served model's own tokenizer does it. Never torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bento_kv.errors import ManifestError, RequestError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Tokenizer:
    """The tokenizer of a decoder directory. Its methods may be called from any thread.

    transformers loads it and renders chat templates; encoding and decoding go straight to the Rust tokenizer, which
    keeps no state between calls, where transformers' own calls set truncation on a shared object.

    Args:
        directory: holds `tokenizer.json` and `tokenizer_config.json`, and a chat template if the model has one.

    Raises:
        ManifestError: they cannot be loaded.
    """

    def __init__(self, directory: Path) -> None:
        from transformers import AutoTokenizer

        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        except Exception as error:  # transformers raises nearly anything here, from OSError to KeyError
            raise ManifestError(f"{directory}: its tokenizer cannot be loaded: {error}") from error
        self._chat = tokenizer
        self._backend: Any = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._special: dict[int, str] = {
            token: text.content for token, text in self._backend.get_added_tokens_decoder().items()
        }
        self._byte_level = _byte_alphabet() if _uses_byte_level(self._backend.to_str()) else None

    @property
    def has_chat_template(self) -> bool:
        return bool(self._chat.chat_template)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, with what the model wants around it (a beginning-of-sequence token) unless told not to."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of the chat template's rendering, with the assistant's turn opened.

        Raises:
            RequestError: the model has no chat template, or the template refuses the messages.
        """
        from jinja2 import TemplateError

        if not self.has_chat_template:
            raise RequestError(
                "this model has no chat template; use /v1/completions with a plain prompt", param="messages"
            )
        try:
            text = self._chat.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        except (TemplateError, TypeError, ValueError) as error:
            raise RequestError(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error
        return self.encode(text, add_special_tokens=False)

    def encode_prompt(self, prompt: str | Sequence[int] | Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of whatever a prompt may be: ids, chat messages, or a text.

        A text is what a user says if the model chats, and the text to continue if it does not.
        """
        if isinstance(prompt, str):
            return (
                self.encode_chat([{"role": "user", "content": prompt}])
                if self.has_chat_template
                else self.encode(prompt)
            )
        if all(isinstance(item, Mapping) for item in prompt):
            return self.encode_chat([item for item in prompt if isinstance(item, Mapping)])
        return [item for item in prompt if isinstance(item, int)]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids, spaces as they are; bytes that form no character become U+FFFD."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token stands for; they need not be whole characters."""
        if token_id in self._special:
            return self._special[token_id].encode()
        token: str | None = self._backend.id_to_token(token_id)
        if token is None:
            return b""
        if self._byte_level is not None:
            return bytes(self._byte_level[symbol] for symbol in token if symbol in self._byte_level)
        byte = _BYTE_TOKEN.fullmatch(token)
        return bytes([int(byte[1], 16)]) if byte else token.replace("\u2581", " ").encode()


def _uses_byte_level(tokenizer_json: str) -> bool:
    decoder = json.loads(tokenizer_json).get("decoder") or {}
    return any(part.get("type") == "ByteLevel" for part in (decoder, *decoder.get("decoders", [])))


def _byte_alphabet() -> dict[str, int]:
    """The symbols that stand for bytes in byte-level BPE: printable bytes for themselves, the rest from U+0100 on.

    Source: GPT-2's encoder, as the tokenizers library has it.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    symbols = {chr(byte): byte for byte in printable}
    symbols.update({chr(0x100 + n): byte for n, byte in enumerate(rest)})
    return symbols

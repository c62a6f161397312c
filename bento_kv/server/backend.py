"""What the server needs of whoever serves: handed in, never imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from bento_kv.engine.engine import Engine
from bento_kv.engine.request import SamplingParams


class TextTokenizer(Protocol):
    """Text to token ids and back."""

    def encode(self, text: str, *, add_special_tokens: bool = True, room: int | None = None) -> list[int]:
        """Ids of a text.

        Args:
            room: tokens that there is room for; a text may be refused that has more, before it is tokenized.

        Raises:
            ContextLengthError: it is longer for certain.
            TokenizerError: the tokenizer fails on it.
        """
        ...

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], *, room: int | None = None) -> list[int]:
        """Ids of the chat template's rendering with the assistant's turn opened; `room` as in `encode`.

        Raises:
            RequestError: the model has no chat template, the template refuses the messages, or they are too long.
        """
        ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that the token stands for; they need not be whole characters."""
        ...


class Backend(Protocol):
    """A model being served.

    Attributes:
        model_id: the name of the model in every answer.
        model_names: all names that clients may call it by, `model_id` among them.
        created: when the decoder was made, Unix seconds.
        max_length: positions of the context, prompt and answer together.
        vocab_size: token ids are below it.
        defaults: what a request's unset sampling fields mean, the model's end-of-sequence ids included.
        verification: the proof that is being served.
    """

    @property
    def model_id(self) -> str: ...
    @property
    def model_names(self) -> frozenset[str]: ...
    @property
    def created(self) -> int: ...
    @property
    def max_length(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def defaults(self) -> SamplingParams: ...
    @property
    def verification(self) -> Mapping[str, Any]: ...
    @property
    def engine(self) -> Engine: ...
    @property
    def tokenizer(self) -> TextTokenizer: ...

"""Chat templates: the model's own Jinja text, rendered as transformers renders it, without transformers.

What a template may rely on is described in transformers' documentation ("Writing a chat template"): trimmed blocks, loop
controls, `raise_exception`, `strftime_now`, a `tojson` that escapes no HTML, and `generation` blocks, which mark what
the assistant said for training and here only contain it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from bento_kv.errors import ManifestError, RequestError


class ChatTemplate:
    """A compiled template.

    Args:
        text: of the template.
        special_tokens: `bos_token`, `eos_token`, ...: what templates call them and their text.

    Raises:
        ManifestError: it is not a template.
    """

    def __init__(self, text: str, special_tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationBlock]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(text)
        except TemplateError as error:
            raise ManifestError(f"the chat template is not valid: {error}") from error
        self._special_tokens = dict(special_tokens)

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The messages as the model was trained to read them, the assistant's turn opened.

        Raises:
            RequestError: the template refuses the messages.
        """
        try:
            return self._template.render(
                messages=list(messages),
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self._special_tokens,
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            message = f"the model's chat template refuses these messages: {error}"
            raise RequestError(message, param="messages") from error


class _GenerationBlock(Extension):
    tags = {"generation"}  # noqa: RUF012 - Jinja's form

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)

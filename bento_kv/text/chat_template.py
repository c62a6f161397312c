"""Chat templates: the model's own Jinja text, rendered as transformers renders it, without transformers.

What a template may rely on is described in transformers' documentation ("Writing a chat template"): trimmed blocks, loop
controls, `raise_exception`, `strftime_now`, a `tojson` that escapes no HTML, and `generation` blocks, which mark what
the assistant said for training and here only contain it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
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
        write: changes what the template writes of its own; nothing unless given.

    Attributes:
        literals: texts that are spelled out in it, and those of its special tokens.

    Raises:
        ManifestError: it is not a template.
    """

    def __init__(
        self, text: str, special_tokens: Mapping[str, str], write: Callable[[str], str] = lambda text: text
    ) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationBlock]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        try:
            tree = environment.parse(text)
            self.literals = [*_literals(tree), *special_tokens.values()]
            _rewrite(tree, write)
            self._template = environment.from_string(tree)
        except TemplateError as error:
            raise ManifestError(f"the chat template is not valid: {error}") from error
        self._text = text
        self._special_tokens = dict(special_tokens)

    def marked(self, write: Callable[[str], str]) -> ChatTemplate:
        """The template with `write` applied to each text that it writes of its own, and to no text that it looks for."""
        return ChatTemplate(self._text, {name: write(token) for name, token in self._special_tokens.items()}, write)

    def render(self, messages: Sequence[Mapping[str, Any]], *, now: datetime | None = None) -> str:
        """The messages as the model was trained to read them, the assistant's turn opened.

        Args:
            messages: turns of the conversation.
            now: what the template may take the date from; the time unless given.

        Raises:
            RequestError: the template refuses the messages.
        """
        try:
            return self._template.render(
                messages=list(messages),
                tools=None,
                documents=None,
                add_generation_prompt=True,
                strftime_now=(now or datetime.now()).strftime,
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


# Fields of expressions whose text is looked for, and not written.
_LOOKED_FOR: Mapping[type[nodes.Node], tuple[str, ...]] = {
    nodes.Compare: ("expr", "ops"),
    nodes.Test: ("node", "args", "kwargs"),
    nodes.If: ("test",),
    nodes.CondExpr: ("test",),
    nodes.For: ("test",),
    nodes.Filter: ("args", "kwargs"),
    nodes.Getitem: ("arg",),
}


def _literals(tree: nodes.Node) -> Iterator[str]:
    for node in tree.find_all((nodes.TemplateData, nodes.Const)):
        text = node.data if isinstance(node, nodes.TemplateData) else getattr(node, "value", None)
        if isinstance(text, str):
            yield text


def _rewrite(node: nodes.Node, write: Callable[[str], str]) -> None:
    """Change in place what a tree writes of its own."""
    if isinstance(node, nodes.TemplateData):
        node.data = write(node.data)
    elif isinstance(node, nodes.Const) and isinstance(node.value, str):
        node.value = write(node.value)
    skipped = _LOOKED_FOR.get(type(node), ())
    if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr):  # a method of a string, nearly always
        skipped = ("args", "kwargs")
    for child in node.iter_child_nodes(exclude=skipped):
        _rewrite(child, write)


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

"""Chat templates in a process of their own: the side that renders, where a template can take no more than its limits.

A template is a program of the model's, and Jinja's sandbox keeps it from files and attributes, not from endless loops, `2 **
10**9` or `'a' * 10**10`, of which the last two are single calls that nothing can interrupt. The kernel can: it ends this
process at its limit of processor time, and refuses it memory. Whoever asked sees which, and starts another.

Each frame, either way, is 4 bytes of length, most significant first, and JSON.
"""

from __future__ import annotations

import json
import math
import re
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import lru_cache
from typing import IO, Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

CPU_SECONDS = 5  # for a rendering; one of the longest body takes a tenth
_BYTES_A_SECOND = 2**18  # of a request; a tenth of what they take
MEMORY_BYTES = 512 * 2**20
MAX_CHARACTERS = 8 * 2**20  # of a rendering

Json = dict[str, Any]
Pairs = tuple[tuple[str, str], ...]


def any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Finds the longest of the texts, none of which is empty."""
    return re.compile("|".join(sorted(map(re.escape, filter(None, texts)), key=len, reverse=True)) or "(?!)")


def processor_seconds(size: int, most: int) -> int:
    """What a request of so many bytes may take of a processor: who asks for little holds others up for a short time only."""
    return min(most, 1 + size // _BYTES_A_SECOND)


def read_frame(stream: IO[bytes]) -> bytes | None:
    """The next message; None if the other side has ended."""
    head = stream.read(4)
    size = int.from_bytes(head)
    body = stream.read(size)
    return None if len(head) < 4 or len(body) < size else body


def write_frame(stream: IO[bytes], body: bytes) -> None:
    stream.write(len(body).to_bytes(4) + body)
    stream.flush()


def answer(request: Json) -> Json:
    """What comes of a request.

    A request has the `text` of a template and its `tokens` by name, `marks` to be written in place of texts that the
    template writes of its own, and `messages` and the time, `now`, if there is something to render.

    The answer has `literals` of the template or the text `rendered`, or else one of `invalid`: why it is no template,
    `refused`: what the template says against the messages, `over`: what it takes more of than it may.
    """
    try:
        template, literals = _compiled(request["text"], _pairs(request["tokens"]), _pairs(request["marks"]))
    except MemoryError:
        return {"over": _MEMORY}
    except Exception as error:  # noqa: BLE001 - a program of the model's may raise anything
        return {"invalid": _told(error)}
    if request["messages"] is None:
        return {"literals": literals}
    try:
        return _rendered(template, request)
    except MemoryError:
        return {"over": _MEMORY}
    except Exception as error:  # noqa: BLE001 - as above
        return {"refused": _told(error)}


def _rendered(template: Template, request: Json) -> Json:
    written, pieces = 0, []
    for piece in template.generate(
        messages=request["messages"],
        tools=None,
        documents=None,
        add_generation_prompt=True,
        strftime_now=datetime.fromisoformat(request["now"]).strftime,
        **_marked(_pairs(request["tokens"]), _pairs(request["marks"])),
    ):
        written += len(piece)
        if written > MAX_CHARACTERS:
            return {"over": f"{MAX_CHARACTERS // 2**20} million characters"}
        pieces.append(piece)
    return {"rendered": "".join(pieces)}


_MEMORY = f"{MEMORY_BYTES // 2**20} MiB of memory"


def _told(error: Exception) -> str:
    """What an error says; a template's own words as they are."""
    words = str(error)[:1000]
    return words if isinstance(error, TemplateError) and words else f"{type(error).__name__}: {words}"


def _pairs(names: Mapping[str, str]) -> Pairs:
    return tuple(names.items())


def _writer(marks: Pairs) -> Callable[[str], str]:
    """Puts marks in the place of what they stand for."""
    names = dict(marks)
    pattern = any_of(names)
    return lambda text: pattern.sub(lambda found: names[found[0]], text)


def _marked(tokens: Pairs, marks: Pairs) -> dict[str, str]:
    write = _writer(marks)
    return {name: write(token) for name, token in tokens}


@lru_cache(maxsize=32)
def _compiled(text: str, tokens: Pairs, marks: Pairs) -> tuple[Template, list[str]]:
    """A template, and the texts that are spelled out in it."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationBlock]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    tree = environment.parse(text)
    literals = [*_literals(tree), *(token for _, token in tokens)]
    _rewrite(tree, _writer(marks))
    return environment.from_string(tree), literals


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


def _limit(kind: int, value: int) -> None:
    """Lower one of the kernel's limits, if it is not lower."""
    _, most = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if most == resource.RLIM_INFINITY else min(value, most), most))


def main(cpu_seconds: int) -> None:
    """Answer requests until there are no more, each within so many seconds of a processor at most."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_DATA, MEMORY_BYTES)
    while (body := read_frame(requests)) is not None:
        _limit(resource.RLIMIT_CPU, math.ceil(time.process_time()) + processor_seconds(len(body), cpu_seconds))
        write_frame(answers, json.dumps(answer(json.loads(body))).encode())


if __name__ == "__main__":
    main(int(sys.argv[1]))

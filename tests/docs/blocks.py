"""The code blocks of a page, and what is said of them in comments above."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

_BLOCK = re.compile(
    r"(?:<!-- (?P<comment>[^\n]+?) -->\n)?"
    r'^```(?P<language>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```$',
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Command:
    """A line to type, and the lines that have to come of it, in this order."""

    line: str
    output: tuple[str, ...] = ()


@dataclass(frozen=True)
class Block:
    """A code block.

    Attributes:
        line: of the page, where it begins.
        language: as the page says.
        title: name of the file that it is, if it is one.
        text: what stands in it.
        not_run: why it is not run; None if it is.
        exit_code: of its last command.
    """

    line: int
    language: str
    title: str | None
    text: str
    not_run: str | None
    exit_code: int

    @property
    def commands(self) -> list[Command]:
        """Of a console block each line behind a `$`, with what follows it; of a shell block the whole."""
        if self.language != "console":
            return [Command(self.text)]
        found: list[Command] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                found.append(Command(line[2:]))
            elif line != "...":
                last = found.pop()
                found.append(Command(last.line, (*last.output, line)))
        return found


def blocks(page: str) -> Iterator[Block]:
    """All blocks of a page of the docs, in order."""
    text = (DOCS / page).read_text(encoding="utf-8")
    for found in _BLOCK.finditer(text):
        what, _, value = (found["comment"] or "").partition(": ")
        yield Block(
            line=text.count("\n", 0, found.start("language")) + 1,
            language=found["language"],
            title=found["title"],
            text=found["text"],
            not_run=value if what == "not run" else None,
            exit_code=int(value) if what == "exit code" else 0,
        )

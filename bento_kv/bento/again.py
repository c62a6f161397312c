"""What to ask for instead of a decoder whose proof failed, in the words of the command or the program that asked."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bento_kv.contract.remedies import Remedy, applied
from bento_kv.contract.spelling import advice, as_argument, as_keyword, as_option

_CHEAPEST_FIRST = "What may mend it, the cheapest first"


def for_arguments(asked: Mapping[str, Any], remedies: Sequence[Remedy], command: Sequence[str]) -> str:
    """For who runs the packaged service.

    Args:
        asked: `precision` and other options of an export, those that were given.
        remedies: the cheapest first.
        command: words of the command line, the program first, that failed.
    """
    again = _again(asked, remedies[0], command)
    return _lines(
        f"{_CHEAPEST_FIRST}:", advice(remedies, as_argument), "" if again is None else f"The first of them: {again}"
    )


def for_program(source: str, asked: Mapping[str, Any], remedies: Sequence[Remedy]) -> str:
    """For who wrote a service with a `VerifiedDecoder` of its own; arguments as for `for_arguments`."""
    options = applied(asked, remedies[0])
    words = [f'"{source}"', *(as_keyword(name, value) for name, value in options.items())]
    return _lines(
        f"{_CHEAPEST_FIRST}, as arguments of VerifiedDecoder:",
        advice(remedies, as_keyword),
        f"The first of them: VerifiedDecoder({', '.join(words)})",
    )


def for_export(remedies: Sequence[Remedy]) -> str:
    """Where the decoder was exported before, and can only be exported again."""
    return _lines(f"{_CHEAPEST_FIRST}, as options of `bento-kv export`:", advice(remedies, as_option), "")


def _lines(head: str, lines: Sequence[str], tail: str) -> str:
    return "\n".join([head, *(f"  {line}" for line in lines), *([tail] if tail else [])])


def _again(asked: Mapping[str, Any], remedy: Remedy, command: Sequence[str]) -> str | None:
    """The command with a remedy; None if it is not one of BentoML's that builds or serves, or cannot be told."""
    program = _program(command)
    if program is None or not {"build", "serve"} & set(command[1:]):
        return None
    options = applied(asked, remedy)
    gone = {remedy.option, *(set(asked) - set(options))}
    said = list(_said(command[1:]))
    if not gone - {remedy.option} <= {name for name, _ in said}:
        return None  # they stand in a file
    kept = [shlex.join(words) for name, words in said if name not in gone]
    return " ".join([program, *kept, as_argument(remedy.option, remedy.value)])


def _program(command: Sequence[str]) -> str | None:
    """As it is called; None if it is not BentoML's."""
    path = Path(command[0]) if command else Path()
    if path.name == "__main__.py" and path.parent.name in ("bentoml", "bentoml_cli"):
        return f"python -m {path.parent.name}"
    return "bentoml" if path.stem == "bentoml" else None


def _said(words: Sequence[str]) -> Iterator[tuple[str | None, list[str]]]:
    """The words of a command line, those of an `--arg` together, with the argument's name."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--arg" and rest:
            yield rest[0].partition("=")[0], [word, rest.pop(0)]
        elif word.startswith("--arg="):
            yield word.removeprefix("--arg=").partition("=")[0], [word]
        else:
            yield None, [word]

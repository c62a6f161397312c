"""The text on which quantization is calibrated: documentation that every Python installation has, or a file."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bento_kv.errors import ExportError

SEQUENCES = 16
LENGTH = 512
_SHORTEST = 32
# Prose about different things, with examples of code, lists and tables.
_MODULES = (
    "argparse", "asyncio", "calendar", "collections", "configparser", "csv", "datetime", "decimal", "difflib",
    "email.message", "fractions", "functools", "heapq", "http.client", "imaplib", "inspect", "ipaddress", "json",
    "locale", "logging", "mailbox", "optparse", "os", "pathlib", "pickle", "random", "shutil", "statistics",
    "string", "subprocess", "tarfile", "textwrap", "threading", "typing", "unittest",
    "urllib.request", "uuid", "zipfile",
)  # fmt: skip


def calibration_sequences(tokenizer: Any, max_length: int, file: Path | None = None) -> list[list[int]]:
    """Token ids, all of one length.

    Args:
        tokenizer: of the model, as transformers loads it.
        max_length: positions that the model may be given.
        file: UTF-8 text of the kind that the model is for; documentation of Python's library unless given.

    Raises:
        ExportError: the file cannot be read, or is too short.
    """
    text = "\n\n".join(_documentation()) if file is None else _read(file)
    length = min(LENGTH, max_length)
    begin = [tokenizer.bos_token_id] if tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id else []
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) < _SHORTEST:
        what = file or "Python's documentation (is it run with -OO?)"
        raise ExportError(f"{what} has {len(ids)} tokens, too few to calibrate on; give some thousands of words")
    room = min(length - len(begin), len(ids))
    found = [[*begin, *ids[at : at + room]] for at in range(0, len(ids) - room + 1, room)]
    step = max(1, len(found) // SEQUENCES)  # from all of the text
    return found[::step][:SEQUENCES]


def _documentation() -> Iterator[str]:
    for name in _MODULES:
        module = importlib.import_module(name)
        yield inspect.getdoc(module) or ""
        for _, member in sorted(inspect.getmembers(module)):
            if inspect.isclass(member) or inspect.isfunction(member):
                yield inspect.getdoc(member) or ""


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"{file} cannot be read as UTF-8 text to calibrate on: {error}") from error

"""`bento-kv`, in a process of its own or in this one, which knows the packages that it imports already."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, NamedTuple

from click.testing import CliRunner

from bento_kv.cli import main

_PROGRAM = Path(sys.executable).parent / "bento-kv"


class Answer(NamedTuple):
    """What a command leaves."""

    returncode: int
    stdout: str
    stderr: str


def run(*arguments: str | Path, input: str | None = None) -> Answer:
    """Run a command in this process."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], input=input, prog_name="bento-kv")
    crash = result.exception if not isinstance(result.exception, SystemExit) else None
    shown = "".join(traceback.format_exception(crash)) if crash else ""
    return Answer(result.exit_code, result.stdout, result.stderr + shown)


def run_apart(*arguments: str | Path, input: str | None = None, **environment: str) -> Answer:
    """Run it as a user does."""
    command: list[Any] = [_PROGRAM, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, input=input, env={**os.environ, **environment}
    )
    return Answer(done.returncode, done.stdout, done.stderr)

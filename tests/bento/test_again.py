"""After a failed build: the words of the command, or of the program, that failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from bento_kv.bento.again import for_arguments, for_program
from bento_kv.contract.remedies import Remedy

BLOCKS = Remedy(option="block_size", value=32, reason="smaller")
FLOATS = Remedy(option="precision", value="fp32", reason="none")


@pytest.mark.parametrize(
    ("command", "remedy", "again"),
    [
        (
            ["/usr/bin/bentoml", "build", "--arg", "model=my model", "--arg=precision=int4", "--arg", "block_size=64"],
            BLOCKS,
            "bentoml build --arg 'model=my model' --arg=precision=int4 --arg block_size=32",
        ),
        (
            [
                "x/bentoml/__main__.py",
                "serve",
                "service:LanguageModel",
                "-p",
                "80",
                "--arg",
                "precision=int4",
                "--arg=block_size=64",
            ],
            FLOATS,
            "python -m bentoml serve service:LanguageModel -p 80 --arg precision=fp32",
        ),
    ],
)
def test_the_whole_command(command: list[str], remedy: Remedy, again: str) -> None:
    said = for_arguments({"precision": "int4", "block_size": 64}, [remedy], command)
    assert said.splitlines()[-1] == f"The first of them: {again}"


@pytest.mark.parametrize(
    "command", [["pytest", "build"], ["bentoml", "list"], [], ["bentoml", "build", "--arg-file", "a.yaml"]]
)
def test_a_command_that_cannot_be_told_is_not(command: list[str]) -> None:
    said = for_arguments({"precision": "int4", "block_size": 64}, [FLOATS], command)
    assert said.splitlines()[1:] == ["  --arg precision=fp32: none"]


def test_a_program() -> None:
    said = for_program("./m", {"precision": "int4", "calibration": Path("t.txt")}, [BLOCKS])
    assert 'VerifiedDecoder("./m", precision="int4", calibration=Path("t.txt"), block_size=32)' in said.splitlines()[-1]

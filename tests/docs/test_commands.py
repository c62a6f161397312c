"""Every command of the quickstart and the guides, typed as it stands there.

Each page is run from top to bottom in a folder of its own, which has what a reader has: the service of the repository, a
model `./my-llama`, and another exporter's decoder `./my-onnx`. `bento-kv` runs in this process, because it would import
torch again and again; everything else runs in a shell. A server runs from its block on until the next one or the end.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import takewhile
from pathlib import Path

import pytest
from click.testing import CliRunner

from bento_kv import VerifiedDecoder, save_model
from bento_kv.cli import main
from tests.docs.blocks import ROOT, Block, Command, blocks
from tests.e2e.server import serving

PAGES = ["quickstart.md", *sorted(f"guides/{page.name}" for page in (ROOT / "docs" / "guides").glob("*.md"))]

# Why a block may be left out, by page: a new reason has to be argued for here.
NOT_RUN = {
    "quickstart.md": ["downloads packages"],
    "guides/serve.md": ["downloads a model from the hub", "needs a container engine and downloads a base image"],
    "guides/operate.md": ["needs an OpenTelemetry collector"],
}
SHELLS = ("bash", "console")
FILES = ("python", "json", "yaml")


def test_what_is_not_run_is_known() -> None:
    found = {page: [block.not_run for block in blocks(page) if block.not_run] for page in PAGES}
    assert {page: reasons for page, reasons in found.items() if reasons} == NOT_RUN


def test_guides_have_commands() -> None:
    assert all(any(block.language in SHELLS for block in blocks(page)) for page in PAGES)


@pytest.fixture(scope="module")
def store(demo_decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The demo is in the model store, as after a first start."""
    reference = VerifiedDecoder("demo")
    save_model(str(reference.tag), demo_decoder, metadata=reference.asked.facts())


@pytest.fixture
def folder(store: None, tiny_source: Path, growing_file: Path, tmp_path: Path) -> Path:
    """Where a reader stands."""
    for name in ("service.py", "bentofile.yaml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "bento_kv", tmp_path / "bento_kv", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(tiny_source, tmp_path / "my-llama")
    (tmp_path / "my-onnx").mkdir()
    for file in growing_file.parent.glob(f"{growing_file.name}*"):
        shutil.copy(file, tmp_path / "my-onnx" / file.name)
    return tmp_path


class Reader:
    """Does what a page says, in a folder."""

    def __init__(self, folder: Path, servers: ExitStack) -> None:
        self._folder = folder
        self._servers = servers
        self._address = "localhost:3000"
        self._logs = 0
        self._environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }

    def follow(self, block: Block) -> None:
        """Write the file that a block is, or type its commands."""
        if block.title is not None:
            (self._folder / block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            self._type(Command(f"python -c {shlex.quote(block.text)}"), 0)
        elif block.language in SHELLS:
            *first, last = block.commands
            for command in first:
                self._type(command, 0)
            self._type(last, block.exit_code)

    def _type(self, command: Command, exit_code: int) -> None:
        words = shlex.split(command.line, comments=True)
        assigned = list(takewhile(lambda word: "=" in word, words))
        if words[len(assigned) :][:2] == ["bentoml", "serve"]:
            self._serve(words[len(assigned) + 2 :], dict(word.split("=", 1) for word in assigned))
            return
        plain = words[0] == "bento-kv" and "\n" not in command.line.strip() and not set(words) & {">", "|", "||"}
        status, output = self._call(words[1:]) if plain else self._shell(command.line)
        assert status == exit_code, output
        lines = iter(" ".join(line.split()) for line in output.splitlines())
        for expected in command.output:  # each looked for behind the one before
            assert any(" ".join(expected.split()) in line for line in lines), (expected, output)

    def _serve(self, arguments: list[str], environment: dict[str, str]) -> None:
        self._servers.close()
        self._logs += 1
        log = self._folder / f"server-{self._logs}.log"
        running = serving(*arguments, log=log, environment={**self._environment, **environment}, directory=self._folder)
        self._address = self._servers.enter_context(running).url.removeprefix("http://")

    def _call(self, arguments: list[str]) -> tuple[int, str]:
        arguments = [word.replace("localhost:3000", self._address) for word in arguments]
        done = CliRunner().invoke(main, arguments)
        return done.exit_code, done.output

    def _shell(self, text: str) -> tuple[int, str]:
        text = text.replace("localhost:3000", self._address).replace("curl ", "curl --fail --show-error ")
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", text],
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def reader(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    monkeypatch.chdir(folder)
    with ExitStack() as servers:
        yield Reader(folder, servers)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_does_what_the_page_says(page: str, reader: Reader) -> None:
    for block in blocks(page):
        if block.not_run is None:
            try:
                reader.follow(block)
            except AssertionError as error:
                raise AssertionError(f"docs/{page}, line {block.line}: {error}") from error

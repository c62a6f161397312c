"""Files beside the weights with wrong content: the sentence names the file and what to do."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from bento_kv.cli import main
from bento_kv.contract.companions import COMPANIONS, read_companion
from bento_kv.errors import ManifestError
from bento_kv.source import ModelSource
from bento_kv.text.tokenizer import Tokenizer
from tests import decoders

WRONG = {
    "not JSON": b"{",
    "empty": b"",
    "a list": b"[1, 2]",
    "a number": b"5",
    "binary": b"\xff\xfe\x00\x01",
    "too deep": b"[" * 100_000,
    "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    shutil.copytree(decoders.source(), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
def test_what_is_no_object_names_its_file(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json is .*copy it again"):
        read_companion(file)


@pytest.mark.parametrize("name", COMPANIONS)
@pytest.mark.parametrize("command", ["export", "doctor", "repair"])
def test_commands_name_the_file_of_a_source(
    source: Path, growing_file: Path, tmp_path: Path, name: str, command: str
) -> None:
    (source / name).write_text("[]")
    out = str(tmp_path / "out.onnx")
    arguments = {
        "export": [str(source), "-o", str(tmp_path / "out")],
        "doctor": [str(growing_file), "--reference", str(source)],
        "repair": [str(growing_file), "-o", out, "--reference", str(source)],
    }
    result = CliRunner().invoke(main, [command, *arguments[command]])
    assert result.exit_code == 2, result.output
    assert f"{name} is not a JSON object" in result.output


def test_a_model_whose_files_are_whole_is_found(source: Path) -> None:
    assert ModelSource.find(str(source)).path == source


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
def test_a_tokenizer_names_the_file(tmp_path: Path, name: str, content: bytes) -> None:
    for each in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(decoders.source() / each, tmp_path / each)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ManifestError, match=rf"{name} is .*copy it again"):
        Tokenizer(tmp_path)


def test_a_tokenizer_of_other_json_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "none"}}')
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ManifestError, match=r"tokenizer\.json is not a tokenizer"):
        Tokenizer(tmp_path)

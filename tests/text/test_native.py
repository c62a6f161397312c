"""A tokenizer that panics is an answer, wherever it does so."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bento_kv.errors import ManifestError, TokenizerError
from bento_kv.text.native import native
from bento_kv.text.tokenizer import Tokenizer
from tests.tokenizers import FORMS

BACKTRACKS = (r"(a+)+$", r"(a|aa)+$", r"(\w|\w\w)+$", r"(a+a+)+x")
TEXT = "a" * 60 + "?"


def made(directory: Path, change: Callable[[Any], None]) -> Tokenizer:
    rust = FORMS["byte-level"]()
    change(rust)
    fast = PreTrainedTokenizerFast(tokenizer_object=rust, eos_token="</s>")
    fast.chat_template = "{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    fast.save_pretrained(directory)
    return Tokenizer(directory)


@pytest.mark.parametrize("pattern", BACKTRACKS)
def test_a_pattern_that_backtracks_without_end(pattern: str, tmp_path: Path) -> None:
    def change(rust: Any) -> None:
        rust.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )

    tokenizer = made(tmp_path, change)
    for ask in (
        lambda: tokenizer.encode(TEXT),
        lambda: tokenizer.encode_chat([{"role": "user", "content": TEXT}]),
        lambda: tokenizer.encode_chat([{"role": "user", "content": f"</s>{TEXT}"}]),
    ):
        with pytest.raises(TokenizerError, match=r"tokenizer fails: .*retry-limit"):
            ask()
    assert tokenizer.encode("is")


def test_a_normalizer_that_backtracks_without_end(tmp_path: Path) -> None:
    def change(rust: Any) -> None:
        rust.normalizer = normalizers.Replace(Regex(r"(a+)+$"), "b")

    with pytest.raises(TokenizerError, match="retry-limit"):
        made(tmp_path, change).encode(TEXT)


@pytest.mark.parametrize("document", ["", "{", "[]", "{}", "null", '{"model": {"type": "none"}}', "[" * 10**5])
def test_a_tokenizer_that_is_none(document: str, tmp_path: Path) -> None:
    made(tmp_path, lambda rust: None)
    (tmp_path / "tokenizer.json").write_text(document)
    with pytest.raises(ManifestError, match=r"tokenizer\.json is not (JSON|a JSON object|a tokenizer).*copy it again"):
        Tokenizer(tmp_path)


class Panic(BaseException):
    """As pyo3's."""


@pytest.mark.parametrize("error", [Panic("a panic"), Exception("plain"), ValueError("a value"), MemoryError()])
def test_every_kind_of_failure_is_one(error: BaseException) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(TokenizerError, match=str(error) or "MemoryError"):
        native(fail)


def test_who_ends_the_process_is_not_kept_from_it() -> None:
    code = "import sys; from bento_kv.text.native import native; native(sys.exit, 7)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 7

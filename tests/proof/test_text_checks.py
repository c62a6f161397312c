"""Tokenizers and templates that differ from transformers' in one respect: each is found by the check of that name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bento_kv.contract.manifest import Manifest
from bento_kv.proof.parity import TorchReference
from bento_kv.proof.text import check_text


def _failed(directory: Path, source: Path) -> dict[str, str]:
    checks = check_text(directory, TorchReference(str(source), Manifest.read(directory)))
    return {check.id: check.explain for check in checks if not check.passed}


def _edit(directory: Path, change: Callable[[Any], None]) -> None:
    path = directory / "tokenizer.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_a_right_decoder_has_no_difference(tiny_decoder: Path, tiny_source: Path) -> None:
    assert _failed(tiny_decoder, tiny_source) == {}


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_special_tokens_that_take_their_surroundings_along(flag: str, tiny_decoder: Path, tiny_source: Path) -> None:
    def change(document: Any) -> None:
        document["added_tokens"][1][flag] = True

    _edit(tiny_decoder, change)
    assert "tokenizer-parity" in _failed(tiny_decoder, tiny_source)


def test_a_special_token_that_is_forgotten(tiny_decoder: Path, tiny_source: Path) -> None:
    _edit(tiny_decoder, lambda document: document["added_tokens"].pop())
    assert "tokenizer-parity" in _failed(tiny_decoder, tiny_source)


def test_a_text_that_is_normalized(tiny_decoder: Path, tiny_source: Path) -> None:
    """Composed characters for combining ones: nothing but such characters shows it."""
    _edit(tiny_decoder, lambda document: document.update(normalizer={"type": "NFC"}))
    assert "tokenizer-parity" in _failed(tiny_decoder, tiny_source)


def test_spaces_that_are_cleaned_up_on_the_way_back(tiny_decoder: Path, tiny_source: Path) -> None:
    def change(document: Any) -> None:
        replace = {"type": "Replace", "pattern": {"String": " ,"}, "content": ","}
        document["decoder"] = {"type": "Sequence", "decoders": [document["decoder"], {"type": "Fuse"}, replace]}

    _edit(tiny_decoder, change)
    assert list(_failed(tiny_decoder, tiny_source)) == ["detokenizer-parity"]


def test_a_special_token_that_is_not_left_out_of_answers(tiny_decoder: Path, tiny_source: Path) -> None:
    def change(document: Any) -> None:
        document["added_tokens"][1]["special"] = False

    _edit(tiny_decoder, change)
    assert "detokenizer-parity" in _failed(tiny_decoder, tiny_source)


@pytest.mark.parametrize(
    ("template", "roles"),
    [
        ("{% for m in messages if m['content'] %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:", "user"),
        (
            (
                "{% for m in messages %}{% if loop.changed(m['role']) %}{{ m['role'] }}: {% endif %}"
                "{{ m['content'] }}\n{% endfor %}assistant:"
            ),
            "user user",
        ),
        ("{% for m in messages %}{{ m['role'] }}: {{ m['content'] | e }}\n{% endfor %}assistant:", "user"),
    ],
    ids=["empty content", "consecutive roles", "escaped"],
)
def test_a_template_that_is_right_for_simple_chats(
    template: str, roles: str, tiny_decoder: Path, tiny_source: Path
) -> None:
    (tiny_decoder / "chat_template.jinja").write_text(template)
    failed = _failed(tiny_decoder, tiny_source)
    assert list(failed) == ["chat-template-parity"]
    assert f": {roles}: " in failed["chat-template-parity"]

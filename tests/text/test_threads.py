"""The tokenizer lets others run, gives the same ids as ever, and refuses what cannot fit before it looks at it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer

from bento_kv import demo
from bento_kv.errors import ContextLengthError
from bento_kv.text.bounds import longest_token
from bento_kv.text.tokenizer import Tokenizer
from tests.zoo import byte_tokenizer

BYTES = [bytes([value]) for value in range(256)]
BYTE_LEVEL = {"pre_tokenizer": {"type": "ByteLevel"}, "model": {"type": "BPE", "unk_token": None}}
TOKENIZER = Tokenizer(demo.path())
PLAIN = RustTokenizer.from_file(str(demo.path() / "tokenizer.json"))
TEXTS = st.text(max_size=200) | st.text("ab \n<|end>é\u0301\U0001f600", max_size=200)


def others_ran(work: Callable[[], object]) -> int:
    """How often another thread got its turn while `work` ran."""
    turns, started, ended = 0, threading.Event(), threading.Event()

    def other() -> None:
        nonlocal turns
        while not ended.is_set():
            turns += 1
            started.set()
            time.sleep(0)

    thread = threading.Thread(target=other)
    thread.start()
    assert started.wait(60)
    before = turns
    work()
    ran = turns - before
    ended.set()
    thread.join()
    return ran


def test_others_run_while_a_long_text_is_tokenized_and_spelled_out() -> None:
    text = " ".join(map(str, range(150_000)))
    ids = TOKENIZER.encode(text)
    assert others_ran(lambda: TOKENIZER.encode(text)) > 100
    assert others_ran(lambda: TOKENIZER.decode(ids)) > 20


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_ids_and_texts_are_those_of_the_plain_calls(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert ids == PLAIN.encode(text).ids
    assert TOKENIZER.decode(ids * 20) == PLAIN.decode(ids * 20)


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized() -> None:
    tokenizer = Tokenizer(demo.path())
    tokenizer._backend = None  # type: ignore[assignment] # whoever asks it fails
    with pytest.raises(ContextLengthError, match="at least 71429 tokens, more than the 1023"):
        tokenizer.encode("x" * 1_000_000, room=1023)
    with pytest.raises(AttributeError):
        tokenizer.encode("x" * 1000, room=1023)


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_no_text_that_fits_is_refused(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.encode(text, room=len(ids)) == ids


def test_no_text_that_fits_is_refused_by_a_tokenizer_with_long_tokens(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    tokenizer = Tokenizer(tmp_path)
    for text in ("", " ", "the the the", "e\u0301" * 50, "\u1100\u1161\u11a8" * 20, "<s>" * 9):
        ids = tokenizer.encode(text)
        assert tokenizer.encode(text, room=len(ids)) == ids


@pytest.mark.parametrize(
    ("parts", "tokens", "longest"),
    [
        ({}, [*BYTES, b"seven b"], 7),
        ({"normalizer": {"type": "NFC"}}, [*BYTES, b"seven b"], 21),
        ({"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}}, BYTES, 1),
        ({"normalizer": {"type": "Replace", "pattern": {"Regex": " +"}, "content": " "}}, BYTES, None),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Strip"}]}}, BYTES, None),
        ({"pre_tokenizer": {"type": "Whitespace"}}, BYTES, None),
        ({"pre_tokenizer": {"type": "Split", "behavior": "Removed"}}, BYTES, None),
        ({"pre_tokenizer": {"type": "Split", "behavior": "Isolated"}}, BYTES, 1),
        ({"added_tokens": [{"lstrip": False, "rstrip": True}]}, BYTES, None),
        ({"model": {"type": "BPE", "unk_token": "<unk>", "byte_fallback": True}}, BYTES, 1),
        ({"model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True}}, BYTES, None),
        ({"model": {"type": "WordPiece", "unk_token": "[UNK]"}}, BYTES, None),
        ({}, BYTES[:255], None),
    ],
)
def test_a_token_stands_for_so_many_bytes_at_most(
    parts: Mapping[str, Any], tokens: list[bytes], longest: int | None
) -> None:
    assert longest_token({**BYTE_LEVEL, **parts}, tokens) == longest

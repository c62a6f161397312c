"""An answer's text behind a prompt: prompt and pieces joined read as the text of all tokens, in every form of tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from bento_kv.engine.detokenizer import MAX_PENDING, Detokenizer
from bento_kv.engine.output_text import OutputText
from tests.tokenizers import FORMS, SPECIAL, decoder

TOKENIZERS = {name: make() for name, make in FORMS.items()}
NAMES = sorted(TOKENIZERS)


def ids_of(form: str, *tokens: str) -> list[int]:
    found = [TOKENIZERS[form].token_to_id(token) for token in tokens]
    assert None not in found
    return found


def answer(form: str, prompt: Sequence[int], ids: Sequence[int]) -> tuple[list[str], list[int]]:
    """Pieces, the rest last, and where each token's text begins."""
    detokenizer = Detokenizer(decoder(TOKENIZERS[form]), prompt)
    pieces, offsets = [], []
    for token_id in ids:
        pieces.append(detokenizer.push(token_id))
        offsets.append(detokenizer.offset)
    return [*pieces, detokenizer.finish()], offsets


@pytest.mark.parametrize("form", NAMES)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_prompt_and_pieces_joined_are_the_text_of_all(form: str, data: st.DataObject) -> None:
    tokenizer, decode = TOKENIZERS[form], decoder(TOKENIZERS[form])
    # A run of byte tokens that is given up on is rewritten whole by the next one, and what was sent cannot be taken back.
    longest = MAX_PENDING - 1 if "ByteFallback" in tokenizer.to_str() else 24
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=longest))
    cut = data.draw(st.integers(0, len(ids)))
    # Not well defined: a decoder of byte tokens makes U+FFFD of a whole run of them if one is wrong, what was text before
    # included, and then no text of the prompt is a beginning of the text of all.
    ends = [decode(ids[:end]).rstrip("�") for end in range(cut, len(ids) + 1)]
    assume(all(whole.startswith(part) for part, whole in pairwise(ends)))
    pieces, offsets = answer(form, ids[:cut], ids[cut:])
    prompt, whole = decode(ids[:cut]), decode(ids)
    if not whole.startswith(prompt):  # the answer completes a character that the prompt began, with its last tokens
        begun = (decode(ids[: max(0, cut - left)]) for left in (1, 2, 3))
        prompt = next((text for text in begun if whole.startswith(text)), prompt.rstrip("�"))
    assert prompt + "".join(pieces) == whole
    assert offsets == sorted(offsets)
    assert all(0 <= offset <= len("".join(pieces)) for offset in offsets)


def test_a_malformed_byte_before_the_character_that_the_prompt_begins_is_not_told_again() -> None:
    ids = [94, 126, 94]  # a byte that continues nothing, and the two of one character
    assert decoder(TOKENIZERS["byte-level"])(ids) == "�¡"
    assert "".join(answer("byte-level", ids[:2], ids[2:])[0]) == "¡"


@pytest.mark.parametrize("form", NAMES)
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_a_text_cut_anywhere_reads_as_a_whole(form: str, data: st.DataObject) -> None:
    text = data.draw(st.text("ab is.é你👩\n", max_size=20))
    tokenizer, decode = TOKENIZERS[form], decoder(TOKENIZERS[form])
    ids = tokenizer.encode(text).ids
    for cut in range(len(ids) + 1):
        whole, prompt = decode(ids), decode(ids[:cut])
        if whole.startswith(prompt):
            assert "".join(answer(form, ids[:cut], ids[cut:])[0]) == whole[len(prompt) :]


@pytest.mark.parametrize("form", ["byte-level", "llama 2", "mistral", "gemma"])
def test_a_long_prompt_is_cut_between_characters(form: str) -> None:
    """Of bytes alone: a run of byte tokens that begins within a character would be none at all."""
    tokenizer = TOKENIZERS[form]
    for letters in range(4):
        ids = tokenizer.encode("a" * letters + "中文👩" * 20).ids
        for cut in range(len(ids) - 8, len(ids)):
            pieces = "".join(answer(form, ids[:cut], ids[cut:])[0])
            assert pieces
            assert "中文👩".endswith(pieces)


@pytest.mark.parametrize("form", ["metaspace always", "metaspace first", "llama 2", "mistral", "gemma"])
def test_an_answer_begins_with_its_space(form: str) -> None:
    prompt, said = ids_of(form, "▁a"), ids_of(form, "▁is", "▁is")
    assert answer(form, prompt, said) == ([" is", " is", ""], [0, 3])


@pytest.mark.parametrize("form", ["metaspace always", "llama 2", "mistral"])
def test_special_tokens_at_the_end_of_a_prompt_hide_no_text_before_them(form: str) -> None:
    prompt = ids_of(form, "▁a", *[SPECIAL] * 50)
    assert answer(form, prompt, ids_of(form, "▁is"))[0] == [" is", ""]


@pytest.mark.parametrize("form", ["metaspace always", "llama 2", "mistral"])
@pytest.mark.parametrize("prompt", [[], [SPECIAL], [SPECIAL] * 3])
def test_behind_no_text_an_answer_begins_a_text(form: str, prompt: list[str]) -> None:
    assert answer(form, ids_of(form, *prompt), ids_of(form, "▁is", "▁is")) == (["is", " is", ""], [0, 2])


def test_a_stop_text_that_begins_with_the_first_space_is_found() -> None:
    tokenizer = TOKENIZERS["mistral"]
    output = OutputText(decoder(tokenizer), [" is"], [tokenizer.token_to_id("▁a")])
    assert output.push(tokenizer.token_to_id("▁is")) == ("", " is")


@pytest.mark.parametrize("form", ["byte-level", "llama 2", "mistral", "gemma"])
def test_a_character_that_the_prompt_begins_is_the_answers(form: str) -> None:
    tokenizer = TOKENIZERS[form]
    ids = tokenizer.encode("a👩").ids
    first = len(tokenizer.encode("a").ids)
    for cut in range(first + 1, len(ids)):
        assert "".join(answer(form, ids[:cut], ids[cut:])[0]) == "👩"


@example([0xE4], [0])
@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 255), max_size=4), st.lists(st.integers(0, 255), max_size=4))
def test_offsets_are_where_the_text_begins(before: list[int], after: list[int]) -> None:
    """Bytes, then a letter: the letter's offset is where it stands."""
    form = "byte-level"
    pieces, offsets = answer(form, before, [*after, *ids_of(form, "Ġis")])  # its first 256 tokens are bytes
    assert "".join(pieces)[offsets[-1] :] == " is"

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from bento_kv.engine.detokenizer import Detokenizer

SPECIAL = "<end>"
TEXTS = st.text(max_size=40) | st.text("ab c'é你好👩‍👩‍👧‍👦🏳️‍🌈�\n ", max_size=30)


def byte_level() -> Tokenizer:
    """A token for each byte, some for several, some that are half a character."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: i for i, letter in enumerate(letters)}
    merges = [("a", "b"), ("Ġ", "c"), ("Ã", "©"), ("ä", "½"), ("ð", "Ł"), ("ðŁ", "ĳ"), ("ä½", "ł"), ("b", "ä")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(SPECIAL, special=True)])
    return tokenizer


def metaspace() -> Tokenizer:
    """Words that carry their space, which the decoder drops at the start of a text."""
    words = ["▁", "▁hello", "▁world", "hello", "▁a", "b", "'s", ".", "▁▁", "你", "é", "👩", "\n"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="▁"))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken(SPECIAL, special=True)])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """As Llama 2: words that carry their space, and bytes for what is not in the vocabulary."""
    words = ["▁", "a", "b", "c", "▁a", "▁c", "'", "é", "<unk>"]
    vocab = {word: i for i, word in enumerate([*words, *(f"<0x{byte:02X}>" for byte in range(256))])}
    tokenizer = Tokenizer(models.BPE(vocab, [("▁", "a"), ("▁", "c")], byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def ids_of(tokenizer: Tokenizer, tokens: Sequence[str]) -> list[int]:
    return [tokenizer.get_vocab()[token] for token in tokens]


def decoder(tokenizer: Tokenizer) -> Callable[[Sequence[int]], str]:
    return lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True))


def check(decode: Callable[[Sequence[int]], str], ids: list[int]) -> list[str]:
    """Detokenize one by one; returns the pieces."""
    detokenizer = Detokenizer(decode)
    pieces = [detokenizer.push(token_id) for token_id in ids]
    pieces.append(detokenizer.finish())
    assert "".join(pieces) == decode(ids)
    return pieces


BYTE_LEVEL, METASPACE, BYTE_FALLBACK = byte_level(), metaspace(), byte_fallback()


@settings(max_examples=300, deadline=None)
@given(TEXTS)
@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, BYTE_FALLBACK], ids=["byte-level", "byte-fallback"])
def test_pieces_of_a_text_joined_are_the_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    pieces = check(decoder(tokenizer), ids)
    if "�" not in text:
        assert not any("�" in piece for piece in pieces)


def test_text_comes_as_soon_as_characters_are_whole() -> None:
    pieces = check(decoder(BYTE_LEVEL), BYTE_LEVEL.encode("ab é👩").ids)
    assert pieces == ["ab", " ", "é", "", "👩", ""]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, BYTE_LEVEL.get_vocab_size() - 1), max_size=60))
@example([0xE4 - 68] * 60)
def test_pieces_of_any_byte_level_tokens_joined_are_the_text(ids: list[int]) -> None:
    check(decoder(BYTE_LEVEL), ids)


# Continuation bytes, starts of characters of two to four bytes, and a special token: almost never whole characters.
malformed = st.lists(
    st.sampled_from(ids_of(BYTE_LEVEL, ["¿", "½", "ł", "Ã", "ä", "ð", "ðŁ", "ä½", "ÿ", "a", SPECIAL])),
    max_size=80,
)


@settings(max_examples=300, deadline=None)
@given(malformed)
def test_pieces_of_malformed_utf8_joined_are_the_text(ids: list[int]) -> None:
    check(decoder(BYTE_LEVEL), ids)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, METASPACE.get_vocab_size() - 1), max_size=30))
@example(ids_of(METASPACE, [SPECIAL, "▁", "▁hello", SPECIAL, "▁world", SPECIAL, SPECIAL, "b"]))
def test_pieces_of_any_metaspace_tokens_joined_are_the_text(ids: list[int]) -> None:
    check(decoder(METASPACE), ids)


@pytest.mark.parametrize(
    ("tokenizer", "tokens"),
    [
        (BYTE_LEVEL, ["a"]),
        (BYTE_LEVEL, ["ÿ"]),
        (BYTE_LEVEL, ["ä", "½"]),
        (BYTE_LEVEL, [SPECIAL]),
        (BYTE_LEVEL, ["a", SPECIAL, SPECIAL]),
        (METASPACE, [SPECIAL]),
        (METASPACE, ["▁"]),
    ],
)
def test_the_cost_is_linear(tokenizer: Tokenizer, tokens: list[str]) -> None:
    """Counted in tokens decoded, whatever the tokens are."""
    decoded = 0

    def decode(ids: Sequence[int]) -> str:
        nonlocal decoded
        decoded += len(ids)
        return str(tokenizer.decode(list(ids), skip_special_tokens=True))

    ids = ids_of(tokenizer, tokens) * (600 // len(tokens))
    detokenizer = Detokenizer(decode)
    for token_id in ids:
        detokenizer.push(token_id)
    detokenizer.finish()
    assert decoded < 100 * len(ids)


def test_a_space_dropped_at_the_start_is_not_dropped_later() -> None:
    ids = ids_of(METASPACE, ["▁hello", SPECIAL, "▁world"])
    assert check(decoder(METASPACE), ids) == ["hello", "", " world", ""]


def test_an_incomplete_character_is_sent_at_the_end() -> None:
    ids = ids_of(BYTE_LEVEL, ["a", "ä½"])
    assert check(decoder(BYTE_LEVEL), ids) == ["a", "", "�"]

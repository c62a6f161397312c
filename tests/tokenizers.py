"""Small tokenizers in each of the forms that models come with: how they write spaces, bytes and the start of a word."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

SPECIAL = "<end>"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_WORDS = ["▁", "a", "b", "is", "▁a", "▁is", "▁is▁", "▁▁", ".", "'s", "é", "你", "\n"]
_LLAMA = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]


def _finish(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(SPECIAL, special=True)])
    return tokenizer


def _vocabulary(words: list[str]) -> dict[str, int]:
    return {word: i for i, word in enumerate(words)}


def byte_level(*, add_prefix_space: bool) -> Tokenizer:
    """GPT-2's form: bytes as letters, with and without a space before the first word."""
    vocabulary = _vocabulary(sorted(pre_tokenizers.ByteLevel.alphabet()))
    merges = [("a", "b"), ("Ġ", "i"), ("Ġi", "s"), ("Ã", "©"), ("ä", "½"), ("ð", "Ł"), ("ðŁ", "ĳ"), ("b", "ä")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    return _finish(tokenizer)


def metaspace(scheme: str) -> Tokenizer:
    """T5's form: a `▁` for each space, and one before the first word always, at the start of the text, or never."""
    tokenizer = Tokenizer(models.Unigram([(word, -float(i)) for i, word in enumerate(["<unk>", *_WORDS])], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=scheme != "never")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return _finish(tokenizer)


def llama_2() -> Tokenizer:
    """Llama 2's form: a `▁` put before every text by its normalizer, characters as bytes, one space stripped."""
    tokenizer = _byte_fallback()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(_LLAMA)
    return _finish(tokenizer)


def mistral() -> Tokenizer:
    """Mistral's form: a `▁` at the start of the text alone."""
    tokenizer = _byte_fallback()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(_LLAMA)
    return _finish(tokenizer)


def gemma() -> Tokenizer:
    """Gemma's form: spaces as `▁`, none before the first word, and none stripped."""
    tokenizer = _byte_fallback()
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(_LLAMA[:-1])
    return _finish(tokenizer)


def _byte_fallback() -> Tokenizer:
    merges = [("▁", "a"), ("i", "s"), ("▁", "is"), ("▁", "▁")]
    words = ["<unk>", "▁", "a", "b", "i", "s", ".", "é", *(left + right for left, right in merges), *BYTES]
    return Tokenizer(models.BPE(_vocabulary(words), merges, byte_fallback=True, unk_token="<unk>"))


def word_piece() -> Tokenizer:
    """BERT's form: pieces of words begin with `##`, and spaces before points are cleaned up."""
    words = ["[UNK]", "a", "##b", "is", ".", "##s", "'", "你"]
    tokenizer = Tokenizer(models.WordPiece(_vocabulary(words), unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    return _finish(tokenizer)


def word_ends() -> Tokenizer:
    """The first GPT's form: the last piece of a word ends in `</w>`."""
    words = ["<unk>", "a", "b", "is", "a</w>", "is</w>", ".</w>"]
    tokenizer = Tokenizer(models.BPE(_vocabulary(words), [], end_of_word_suffix="</w>", unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.BPEDecoder()
    return _finish(tokenizer)


def plain_words() -> Tokenizer:
    """Whole words, joined by spaces because there is no decoder."""
    tokenizer = Tokenizer(models.WordLevel(_vocabulary(["<unk>", "a", "b", "is"]), unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _finish(tokenizer)


FORMS: Mapping[str, Callable[[], Tokenizer]] = {
    "byte-level": lambda: byte_level(add_prefix_space=False),
    "byte-level with a prefix space": lambda: byte_level(add_prefix_space=True),
    "metaspace always": lambda: metaspace("always"),
    "metaspace first": lambda: metaspace("first"),
    "metaspace never": lambda: metaspace("never"),
    "llama 2": llama_2,
    "mistral": mistral,
    "gemma": gemma,
    "word pieces": word_piece,
    "word ends": word_ends,
    "plain words": plain_words,
}


def decoder(tokenizer: Tokenizer) -> Callable[[Any], str]:
    """Token ids to text, without special tokens."""
    return lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True))

"""How many bytes of text one token can stand for: a text that has more of them than a context holds need not be tokenized
to know that it does not fit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

_COMPOSED = 3  # characters that Unicode normalization composes have up to so many times the bytes (Hangul: 9 become 3)
_NORMALIZERS = {"NFC": _COMPOSED, "NFD": _COMPOSED, "Prepend": 1, "ByteLevel": 1}
_KEEPS_ALL = {"ByteLevel", "Metaspace", "Digits"}


def longest_token(tokenizer: Mapping[str, Any], tokens: Collection[bytes]) -> int | None:
    """Bytes of text that one token stands for at most.

    Args:
        tokenizer: `tokenizer.json`.
        tokens: what each token of the vocabulary stands for.

    Returns:
        None where a token may stand for any number of bytes: one for whatever is unknown, one that swallows the spaces
        around it, text that is dropped or shortened on the way to the vocabulary.
    """
    shrinks = _shrinks(tokenizer.get("normalizer"))
    swallows = any(token["lstrip"] or token["rstrip"] for token in tokenizer.get("added_tokens", ()))
    spells = _spells_all(tokenizer["model"], tokens)
    if shrinks is None or swallows or not spells or not _keeps_all(tokenizer.get("pre_tokenizer")):
        return None
    return shrinks * max(map(len, tokens))


def _shrinks(normalizer: Mapping[str, Any] | None) -> int | None:
    """To what part of its bytes the normalizer may bring a text, as a divisor; None if there is no telling."""
    if normalizer is None:
        return 1
    kind = normalizer["type"]
    if kind == "Sequence":
        parts = [_shrinks(part) for part in normalizer["normalizers"]]
        return None if None in parts else max([1, *(part for part in parts if part is not None)])
    if kind == "Replace":
        pattern = normalizer["pattern"].get("String")
        longer = pattern is not None and len(normalizer["content"].encode()) >= len(pattern.encode())
        return 1 if longer else None
    return _NORMALIZERS.get(kind)


def _keeps_all(pre_tokenizer: Mapping[str, Any] | None) -> bool:
    if pre_tokenizer is None:
        return True
    kind = pre_tokenizer["type"]
    if kind == "Sequence":
        return all(map(_keeps_all, pre_tokenizer["pretokenizers"]))
    return kind in _KEEPS_ALL or (kind == "Split" and pre_tokenizer["behavior"] != "Removed")


def _spells_all(model: Mapping[str, Any], tokens: Collection[bytes]) -> bool:
    """Whether every byte can be spelled and is, so that nothing is unknown or left out."""
    every = len({token for token in tokens if len(token) == 1}) == 256
    byte_level = model["type"] == "BPE" and model.get("unk_token") is None
    return every and bool(byte_level or model.get("byte_fallback"))

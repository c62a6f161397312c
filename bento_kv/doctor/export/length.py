"""How many positions a decoder says that it has: what its files declare, or the model that it was made from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bento_kv.contract.files import MANIFEST_FILE
from bento_kv.contract.reference import NumericReference

_FIELDS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length")
# Rotary frequencies that change where a sequence outgrows the length that the model was first trained for: what is
# computed for a few tokens at a far position is not what they are at the end of a sequence.
_LENGTH_DEPENDENT = ("dynamic", "longrope", "su")


@dataclass(frozen=True, slots=True)
class Declared:
    """Positions of a sequence.

    Attributes:
        length: how many there are.
        source: what says so.
        steady: positions up to which a few tokens at a place are what they are in a sequence that reaches it.
    """

    length: int
    source: str
    steady: int


def declared_length(folder: Path, reference: NumericReference | None = None) -> Declared | None:
    """By the manifest, onnxruntime-genai's configuration, the model's; else by the reference. None if nothing says.

    Args:
        folder: where the decoder's configurations are.
        reference: the model that the decoder was exported from.
    """
    config = _read(folder / "config.json")
    found = _length(_read(folder / MANIFEST_FILE), ("max_length",), MANIFEST_FILE)
    found = found or _length(_read(folder / "genai_config.json").get("model"), ("context_length",), "genai_config.json")
    found = found or _length(config, _FIELDS, "config.json")
    if found is None and reference is not None and reference.max_length:
        found = reference.max_length, "the reference"
    if found is None:
        return None
    length, source = found
    return Declared(length, source, min(length, _original(config) or length))


def _read(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _length(config: Any, fields: tuple[str, ...], source: str) -> tuple[int, str] | None:
    if not isinstance(config, dict):
        return None
    for part in (config, config.get("text_config")):
        for field in fields:
            value = part.get(field) if isinstance(part, dict) else None
            if isinstance(value, int) and value > 0:
                return value, source
    return None


def _original(config: dict[str, Any]) -> int | None:
    """The length that a model was first trained for, where its rotary frequencies depend on it."""
    for part in (config, config.get("text_config")):
        if not isinstance(part, dict):
            continue
        rotary = part.get("rope_parameters") or part.get("rope_scaling")
        if isinstance(rotary, dict) and (rotary.get("rope_type") or rotary.get("type")) in _LENGTH_DEPENDENT:
            names = ("original_max_position_embeddings",)
            said = _length(rotary, names, "") or _length(part, (*names, "max_position_embeddings"), "")
            return said[0] if said else None
    return None

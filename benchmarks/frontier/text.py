"""What predictions are compared on, and what prompts are taken from: none of it is in the text that int4 is calibrated on."""

from __future__ import annotations

import json
from pathlib import Path

from bento_kv.proof.quality import probe_sequences
from bento_kv.text.tokenizer import Tokenizer

DESCRIPTION = "the proof's passages and chats, and pieces of this project's documentation"
PIECE, PIECES = 256, 4
# This project's pages on its concepts as they once were: results are compared over time, so it stays as it is.
_PROSE = Path(__file__).with_name("prose.txt")


def sequences_of(decoder: Path, max_length: int) -> list[list[int]]:
    """Token ids: the proof's own text, of many kinds, and prose about this project, which no model has read.

    Args:
        decoder: a directory with the model's tokenizer.
        max_length: positions of the model.
    """
    tokenizer = Tokenizer(decoder)
    pages = tokenizer.encode(_PROSE.read_text(encoding="utf-8"))
    step = (len(pages) - PIECE) // (PIECES - 1)
    return probe_sequences(tokenizer, max_length) + [pages[at * step : at * step + PIECE] for at in range(PIECES)]


def write_text(sequences: list[list[int]], file: Path) -> None:
    """All of it in one, for prompts."""
    file.write_text(json.dumps([token for ids in sequences for token in ids]))

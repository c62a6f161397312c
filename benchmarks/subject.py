"""A model that engines are compared on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks.catalogue import ROOT
from benchmarks.shapes import SHAPES, write_model
from benchmarks.workers.protocol import piece_of, random_ids

FILES = ROOT / "build" / "bench"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A Hugging Face directory, and where its files for the engines go.

    Attributes:
        name: in records.
        source: the directory.
        folder: of the engines' files and logs.
        vocab: how many ids there are.
        text: token ids that prompts are taken from, as JSON; they are random without it.
    """

    name: str
    source: Path
    folder: Path
    vocab: int
    text: Path | None = None

    def prompt(self, name: str, length: int) -> list[int]:
        """A prompt, the same for every engine; another for another name."""
        if self.text is None:
            return random_ids(name, length, self.vocab)
        return piece_of(json.loads(self.text.read_text()), name, length)


def random_subject(shape: str) -> Subject:
    """A model of a shape of `shapes.SHAPES` with random weights, which are made unless they are there."""
    folder = FILES / shape
    made = folder / "source.made"
    if not made.is_file():
        write_model(SHAPES[shape], folder / "source")
        made.touch()
    return Subject(name=shape, source=folder / "source", folder=folder, vocab=SHAPES[shape].vocab)

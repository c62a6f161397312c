"""What an answer's text means: pieces of text, as they become final, are read as the parts of a message."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Content:
    """Text for whoever asked."""

    text: str


class MessageParser(Protocol):
    """Reads one answer. Where its text was cut into pieces makes no difference to what its parts are, taken together."""

    def push(self, text: str) -> Sequence[Content]:
        """The parts, or pieces of parts, that are certain once `text` has come; none while its meaning is open."""
        ...

    def finish(self) -> Sequence[Content]:
        """What was held back, now that nothing more comes."""
        ...


class PlainContent:
    """All text is content."""

    def push(self, text: str) -> Sequence[Content]:
        return (Content(text),) if text else ()

    def finish(self) -> Sequence[Content]:
        return ()

"""What a repair says of itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that was mended, or could not be.

    Attributes:
        id: of the finding that it answers, as the diagnosis names it; `names` where only names changed.
        where: the node, the tensor and axis, or the file.
        text: what was done; or why it could not be, and what to do instead.
    """

    id: str
    where: str
    text: str


@dataclass(slots=True)
class Repair:
    """Of one file.

    Attributes:
        source: the file that was read; it is as it was.
        output: what was written; None if nothing was, because there was nothing to mend or nothing could be.
        mended: changes between the two.
        left: what is still wrong.
        exported: the graph is a new export of the reference, not the old one mended.
    """

    source: Path
    output: Path | None = None
    mended: list[Change] = field(default_factory=list)
    left: list[Change] = field(default_factory=list)
    exported: bool = False

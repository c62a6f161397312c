"""What a run of the frontier leaves behind, and which points of it no other one beats."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.frontier.contenders import CONTENDERS
from benchmarks.results import FOLDER, Record, Row
from bento_kv.proof.evaluation import Quality


@dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    """Of positions that were computed in prompts, and one by one behind them."""

    prefill: Quality
    decode: Quality

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Phases:
        """From JSON."""
        return cls(**{name: Quality(**each) for name, each in fields.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A contender in a cell: tokens a second (median, and of the rounds the lowest and highest), nats a token lost there."""

    contender: str
    phase: str
    rows: int
    speed: float
    lowest: float
    highest: float
    kl: float

    def beats(self, other: Point) -> bool:
        """As fast and as faithful, and one of both more so."""
        at_least = self.speed >= other.speed and self.kl <= other.kl
        return at_least and (self.speed > other.speed or self.kl < other.kl)


@dataclass(slots=True, kw_only=True)
class Frontier:
    """A run.

    Attributes:
        model: its name.
        parameters: of it, tied ones once.
        text: what predictions were compared on.
        note: what the reader has to know of the model's weights.
        record: speeds, memory, versions and circumstances.
        quality: by contender.
        bits: of all files with weights, for a parameter.
    """

    model: str
    parameters: int
    text: str
    note: str
    record: Record
    quality: dict[str, Phases] = field(default_factory=dict)
    bits: dict[str, float] = field(default_factory=dict)

    @property
    def cells(self) -> list[tuple[str, int]]:
        """Phase and rows of each, as they were measured."""
        return list(dict.fromkeys((row.phase, row.rows) for row in self.record.rows))

    def points(self, phase: str, rows: int) -> list[Point]:
        """One a contender whose speed and predictions were measured."""
        found = []
        for name, quality in self.quality.items():
            speeds = [row for row in self.record.rows if _is_of(row, name, phase, rows)]
            if speeds:
                best = max(speeds, key=lambda row: row.median)
                kl = (quality.prefill if phase == "prefill" else quality.decode).kl
                found.append(
                    Point(
                        contender=name,
                        phase=phase,
                        rows=rows,
                        speed=best.median,
                        lowest=best.minimum,
                        highest=best.maximum,
                        kl=kl,
                    )
                )
        return found

    def peak_mib(self, contender: str) -> float | None:
        """Its highest resident memory, in the way of running it that takes the least."""
        peaks = [each.peak_mib for each in self.record.loaded if each.engine in CONTENDERS[contender]]
        return min(peaks, default=None)

    def write(self, folder: Path = FOLDER) -> Path:
        """Write it under a dated name."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{datetime.fromisoformat(self.record.created):%Y-%m-%d-%H%M}-frontier.json"
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")
        return path

    @classmethod
    def read(cls, path: Path) -> Frontier:
        """Read what `write` wrote."""
        fields = json.loads(path.read_text())
        fields["record"] = Record.of(fields["record"])
        fields["quality"] = {name: Phases.of(each) for name, each in fields["quality"].items()}
        return cls(**fields)


def _is_of(row: Row, contender: str, phase: str, rows: int) -> bool:
    return row.engine in CONTENDERS[contender] and (row.phase, row.rows) == (phase, rows)


def unbeaten(points: Sequence[Point]) -> list[Point]:
    """Those that no other one beats, the fastest first; what predicts nothing finite is not among them."""
    finite = [point for point in points if math.isfinite(point.kl)]
    found = [point for point in finite if not any(other.beats(point) for other in finite)]
    return sorted(found, key=lambda point: (-point.speed, point.kl))


def fastest_as_faithful(points: Iterable[Point], kl: float) -> Point | None:
    """The fastest of those that lose at most so much."""
    return max((point for point in points if point.kl <= kl), key=lambda point: point.speed, default=None)

"""What a run leaves behind: rows of measurements and the circumstances, as dated JSON; of runs worth keeping, a table."""

from __future__ import annotations

import csv
import json
import statistics
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "results"  # whole records, which git ignores
KEPT = ROOT / "benchmarks" / "results"  # small tables and a plot, for the README

Phase = Literal["prefill", "decode"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What is measured of every engine side by side.

    Attributes:
        rows: sequences; one in prefill.
        context: tokens of the prompt, or before each row's first step.
        steps: of one measurement: 1 in prefill.
    """

    phase: Phase
    rows: int
    context: int
    steps: int

    @property
    def tokens(self) -> int:
        """Tokens that one measurement computes."""
        return self.context if self.phase == "prefill" else self.rows * self.steps

    def __str__(self) -> str:
        return (
            f"{self.phase} of {self.context} tokens"
            if self.phase == "prefill"
            else f"decode x{self.rows} at {self.context}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """An engine's speed in a cell, tokens a second over the rounds.

    Attributes:
        model: key of `shapes.SHAPES`.
        rounds: how many measurements there are.
    """

    engine: str
    model: str
    precision: str
    phase: Phase
    rows: int
    context: int
    median: float
    minimum: float
    maximum: float
    rounds: int

    @classmethod
    def of(cls, engine: str, model: str, precision: str, cell: Cell, seconds: list[float]) -> Row:
        """A row of the seconds that each round took."""
        rates = [cell.tokens / each for each in seconds]
        return cls(
            engine=engine,
            model=model,
            precision=precision,
            phase=cell.phase,
            rows=cell.rows,
            context=cell.context,
            median=statistics.median(rates),
            minimum=min(rates),
            maximum=max(rates),
            rounds=len(rates),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What an engine needs before it computes: time, memory (MiB, the cache that it allocates at once included)."""

    engine: str
    model: str
    load_seconds: float
    resident_mib: float
    peak_mib: float
    idle_load: float
    versions: dict[str, str]


@dataclass(slots=True, kw_only=True)
class Record:
    """A run.

    Attributes:
        bandwidth: see `limit.bandwidths`; bytes a second.
        other_load: cores that processes besides the engines used, by cell; near zero on a quiet machine.
        left_out: engine or cell, and why it was not measured.
        failed: engine or cell, and what went wrong.
    """

    machine: dict[str, str]
    threads: int
    rounds: int
    bandwidth: dict[str, float]
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    rows: list[Row] = field(default_factory=list)
    loaded: list[Loaded] = field(default_factory=list)
    other_load: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        """Write it under a dated name, over an earlier run of the same minute."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{datetime.fromisoformat(self.created):%Y-%m-%d-%H%M}-engines.json"
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")
        return path

    def keep(self, folder: Path = KEPT) -> Path:
        """Write the rows alone, tokens a second to three digits, as dated CSV; the first line has the circumstances."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{datetime.fromisoformat(self.created):%Y-%m-%d}-engines.csv"
        with path.open("w", newline="") as file:
            speed = f"{self.bandwidth['read'] / 1e9:.1f} GB/s of memory"
            file.write(f"# {self.created}, {self.machine['processor']}, {self.threads} threads, {speed}\n")
            table = csv.DictWriter(file, [each.name for each in fields(Row)], lineterminator="\n")
            table.writeheader()
            for row in self.rows:
                rates = {name: f"{getattr(row, name):.3g}" for name in ("median", "minimum", "maximum")}
                table.writerow(asdict(row) | rates)
        return path

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read what `write` wrote."""
        return cls.of(json.loads(path.read_text()))

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Record:
        """From JSON."""
        rows = [Row(**row) for row in fields["rows"]]
        loaded = [Loaded(**loaded) for loaded in fields["loaded"]]
        return cls(**(fields | {"rows": rows, "loaded": loaded}))

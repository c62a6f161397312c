"""What a judgement of an export says, whichever way the decoder was driven."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bento_kv.doctor.records import Measurements, PartDiagnosis

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ExportJudgement:
    """What was found of a decoder's export.

    Attributes:
        diagnosis: the verdict, and the findings with the one to be mended first before the others.
        measurements: of its own steps, and against the reference; empty where nothing could be run.
        notes: what was taken at its word.
        vocab_size: token ids are below it; 0 where nothing could be run.
        stepped: its cache can be cut and fed by position, so that loops can be compared with it.
    """

    diagnosis: PartDiagnosis
    measurements: Measurements
    notes: tuple[str, ...]
    vocab_size: int
    stepped: bool = True

"""`verification.json`: what was checked of a decoder, with numbers, and what it answered where it was proven."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from bento_kv.contract.files import MANIFEST_FILE, VERIFICATION_FILE, sha256
from bento_kv.contract.manifest import Manifest
from bento_kv.contract.precision import PRECISIONS
from bento_kv.contract.record import Record, read_record, write_record
from bento_kv.contract.remedies import Remedy, merged
from bento_kv.contract.spelling import advice, as_keyword
from bento_kv.errors import IntegrityError, VerificationError


class Check(Record):
    """One check of a proof.

    Attributes:
        measured, limit: in the unit that `explain` names; passed is measured <= limit.
        remedies: options of an export with which a failed one may pass, the cheapest first.
    """

    id: str
    passed: bool
    measured: float | None
    limit: float | None
    explain: str
    remedies: tuple[Remedy, ...] = ()


class PartProof(Record):
    """The checks of one part of the problem: the export, or the loop."""

    passed: bool
    checks: tuple[Check, ...]

    @model_validator(mode="after")
    def _follows_from_the_checks(self) -> Self:
        if self.passed and not (self.checks and all(check.passed for check in self.checks)):
            raise ValueError("it says passed, and its checks do not")
        return self


class GoldenStep(Record):
    """The token that greedy decoding took, and the likeliest tokens with their logits, likeliest first."""

    token: int
    top: tuple[tuple[int, float], ...]


class GoldenPrompt(Record):
    """A prompt and what the proven decoder answered, step by step; replayed where the decoder is loaded."""

    prompt: tuple[int, ...]
    steps: tuple[GoldenStep, ...]


class Verification(Record):
    """`verification.json`, bound to its manifest by hash. `golden_limit` bounds a golden logit's deviation at load."""

    schema_: Literal["bento_kv.verification/1"] = Field("bento_kv.verification/1", alias="schema")
    passed: bool
    manifest_sha256: str
    export: PartProof
    loop: PartProof
    golden: tuple[GoldenPrompt, ...]
    golden_limit: float = Field(le=max(row.golden for row in PRECISIONS.values()))
    machine: dict[str, str]
    versions: dict[str, str]
    created: str
    seconds: float

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that did not pass, the export's first."""
        return tuple(check for part in (self.export, self.loop) for check in part.checks if not check.passed)

    @property
    def remedies(self) -> tuple[Remedy, ...]:
        """Of all checks that did not pass, the cheapest first."""
        return merged(remedy for check in self.failed for remedy in check.remedies)

    @model_validator(mode="after")
    def _follows_from_the_parts(self) -> Self:
        if self.passed and not (self.export.passed and self.loop.passed and self.golden):
            raise ValueError("it says passed, and its parts do not, or it has no golden prompts")
        return self

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read and validate; raises ManifestError."""
        return read_record(cls, directory / VERIFICATION_FILE, remedy="`bento-kv verify` writes one")

    def write(self, directory: Path) -> None:
        write_record(self, directory / VERIFICATION_FILE)


def check_proof(directory: Path) -> tuple[Manifest, Verification]:
    """Read a decoder directory and insist on its proof: passed, of this manifest, of these files.

    Raises:
        ManifestError: the directory is not a decoder, or was never verified.
        IntegrityError: a file is not the one that was proven.
        VerificationError: the proof failed.
    """
    manifest = Manifest.read(directory)
    record = Verification.read(directory)
    if record.manifest_sha256 != sha256(directory / MANIFEST_FILE):
        raise IntegrityError(
            f"{directory}: its manifest was changed after the proof; run `bento-kv verify` on it again"
        )
    manifest.check_files(directory)
    if record.golden_limit > manifest.golden_limit:
        raise VerificationError(f"{directory}: golden_limit is wider than its precision, {manifest.coarsest}, allows")
    if not record.passed:
        raise failure(str(directory), record)
    return manifest, record


def failure(of: str, record: Verification) -> VerificationError:
    """The error of a proof that failed: the first check that did, the names of the others, and what may mend it."""
    first, *others = record.failed or (None,)
    why = "" if first is None else f": {first.id} ({first.explain})"
    too = f"; {', '.join(check.id for check in others if check)} failed too" if others else ""
    error = VerificationError(f"{of}: its proof failed{why}{too}", remedies=record.remedies)
    for line in advice(error.remedies, as_keyword):
        error.add_note(f"What may mend it, of `VerifiedDecoder` and `QuantizationOptions`: {line}")
    return error

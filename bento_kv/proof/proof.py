"""The proof of a decoder directory: every check, a verdict, a record."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from bento_kv.contract.files import MANIFEST_FILE, sha256
from bento_kv.contract.manifest import Manifest
from bento_kv.contract.reference import NumericReference, WeightReference
from bento_kv.contract.verification import Check, GoldenPrompt, PartProof, Verification
from bento_kv.contract.versions import versions_of
from bento_kv.disk import scratch
from bento_kv.doctor.faults import Part
from bento_kv.errors import DecoderError
from bento_kv.host import available_cpus, processor
from bento_kv.proof.contract import check_contract
from bento_kv.proof.growing import check_growing
from bento_kv.proof.quality import probe_sequences
from bento_kv.proof.stages import Found, ProofPlan
from bento_kv.proof.text import TextReference, check_text
from bento_kv.proof.twin import make_twin
from bento_kv.text.tokenizer import Tokenizer

_PACKAGES = ("onnxruntime", "onnx", "torch", "transformers", "numpy")

Progress = Callable[[str], None]


class Reference(NumericReference, WeightReference, TextReference, Protocol):
    """The model that the decoder was made from, as transformers has it."""


def prove(
    directory: Path,
    reference: Callable[[Manifest], Reference],
    *,
    threads: int | None = None,
    progress: Progress = lambda _: None,
) -> Verification:
    """Run the proof and write `verification.json`.

    It drives the decoder that serves, with the settings that serve, in both modes of exactness. A failing contract
    ends it before anything runs, since the numbers would mean nothing. A quantized decoder is proven in two halves: its
    float twin (`twin.py`) is compared with torch in its place, and its weights with torch's; then what it predicts must be
    near enough (`quality.py`), and all that is proven by equality is proven of itself. The engine relies on law 1 in mode `full`
    (`cached-equals-uncached-full`) and on law 2 in both (`alone-equals-together-*`), so a machine whose kernels break
    one by a bit gets a record that says by how much, and has not passed.

    Args:
        directory: a decoder directory.
        reference: makes the reference model; called only if the contract holds.
        threads: of a step; as many as this process has CPUs unless set.
        progress: told what is checked next, how far the proof is and how long it took so far.

    Returns:
        The record; `passed` says whether the proof holds.

    Raises:
        ManifestError: the directory is not a decoder.
    """
    manifest = Manifest.read(directory)
    book = _Book(progress)
    book.add("export", "contract", lambda: check_contract(directory, manifest))
    if book.holds("export"):
        try:
            if manifest.layout == "growing":
                book.add("export", "self-consistency", lambda: check_growing(directory, threads))
            _compute(directory, manifest, reference(manifest), threads or available_cpus(), book)
        except DecoderError as error:
            # Until the decoder has been compared with torch step by step, what fails is the graph.
            compared = any(check.id == "decode-logits" for check in book.checks["export"])
            failed = Check(id="runs", passed=False, measured=None, limit=None, explain=str(error))
            book.checks["loop" if compared else "export"].append(failed)
    record = book.close(sha256(directory / MANIFEST_FILE), manifest.golden_limit)
    record.write(directory)
    return record


def _compute(directory: Path, manifest: Manifest, model: Reference, threads: int, book: _Book) -> None:
    """All that comes after the contract, or after a growing cache's self-consistency if that holds."""
    if not book.holds("export"):
        return

    def texts() -> list[list[int]]:
        return probe_sequences(Tokenizer(directory), manifest.max_length)

    with ExitStack() as stack:
        floats = directory
        if manifest.quantized:
            floats = stack.enter_context(scratch("twin"))
        plan = ProofPlan(directory, floats, manifest, model, threads, texts)
        stages = plan.stages()
        book.expected = book.done + 1 + manifest.quantized + sum(len(stage.works) for stage in stages)
        book.add("export", "tokenizer and chat template", lambda: check_text(directory, model))
        if manifest.quantized:
            book.add("export", "float twin and weights", lambda: make_twin(directory, manifest, model, floats))
            if any(check.id == "float-twin" and not check.passed for check in book.checks["export"]):
                return
        for stage in stages:
            stage.run(book.add)
        book.golden = plan.golden


@dataclass(slots=True)
class _Book:
    """What was found so far, and how much work there is."""

    progress: Progress
    checks: dict[Part, list[Check]] = field(default_factory=lambda: {"export": [], "loop": []})
    golden: tuple[GoldenPrompt, ...] = ()
    expected: int = 0
    done: int = 0
    _began: float = field(default_factory=time.monotonic)

    def holds(self, part: Part) -> bool:
        """Whether all its checks passed so far."""
        return all(check.passed for check in self.checks[part])

    def add(self, part: Part, name: str, work: Callable[[], Found]) -> None:
        self.done += 1
        of = f"/{self.expected}" if self.expected else ""
        self.progress(f"{self.done}{of} {name}, {self._seconds:.0f} s so far")
        found = work()
        self.checks[part].extend([found] if isinstance(found, Check) else found)

    def close(self, manifest_sha256: str, golden_limit: float) -> Verification:
        parts = {part: _proof_of(checks) for part, checks in self.checks.items()}
        passed = all(proof.passed for proof in parts.values())
        return Verification(
            passed=passed,
            manifest_sha256=manifest_sha256,
            export=parts["export"],
            loop=parts["loop"],
            golden=self.golden if passed else (),
            golden_limit=golden_limit,
            machine=processor(),
            versions=versions_of(_PACKAGES),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(self._seconds, 1),
        )

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._began


def _proof_of(checks: Sequence[Check]) -> PartProof:
    return PartProof(passed=bool(checks) and all(check.passed for check in checks), checks=tuple(checks))

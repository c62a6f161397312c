"""The proof of a decoder directory: every check, a verdict, a record."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import numpy as np

from bento_kv import manifest as contract
from bento_kv.errors import DecoderError
from bento_kv.manifest import Check, LayerProof, Manifest, Verification
from bento_kv.plan import Exactness
from bento_kv.runtime.decoder import OnnxDecoder
from bento_kv.runtime.golden import record_golden
from bento_kv.verify.contract import check_contract, longest_window
from bento_kv.verify.exactness import check_neighbours, check_reuse, check_splits
from bento_kv.verify.numeric import NumericReference, check_far, check_greedy, check_numbers, check_ragged, check_window
from bento_kv.verify.text import TextReference, check_text

PROBE_TOKENS = 300
BEYOND_WINDOW = 64
GREEDY_STEPS = 16
GOLDEN_STEPS = 8
SLOTS = 17  # sixteen, as the service has unless told otherwise, and one that no check has used
_PACKAGES = ("onnxruntime", "onnx", "torch", "transformers", "numpy")

Progress = Callable[[str], None]


class Reference(NumericReference, TextReference, Protocol):
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
    ends it before anything runs, since the numbers would mean nothing.

    Args:
        directory: a decoder directory.
        reference: makes the reference model; called only if the contract holds.
        threads: of a step; as many as this process has CPUs unless set.
        progress: told what is being checked.

    Returns:
        The record; `passed` says whether the proof holds.

    Raises:
        ManifestError: the directory is not a decoder.
    """
    began = time.monotonic()
    manifest = Manifest.read(directory)
    progress("contract")
    export = check_contract(directory, manifest)
    loop: list[Check] = []
    golden: tuple[contract.GoldenPrompt, ...] = ()
    if all(check.passed for check in export):
        probes = Probes(manifest, longest_window(directory))
        try:
            model = reference(manifest)
            progress("tokenizer and chat template")
            export += check_text(directory, model)
            for exact in ("full", "batch"):
                decoder = None  # frees the weights of the one before
                decoder = _open(directory, exact, threads)
                for layer, check in _numeric(decoder, model, probes):
                    progress(check.id)
                    (export if layer == "export" else loop).append(check)
            if decoder is not None and all(check.passed for check in [*export, *loop]):
                golden = tuple(record_golden(decoder, prompt, GOLDEN_STEPS) for prompt in probes.prompts)
        except DecoderError as error:
            # Until the decoder has been compared with torch step by step, what fails is the graph.
            failed = Check(id="runs", passed=False, measured=None, limit=None, explain=str(error))
            (loop if any(check.id == "decode-logits" for check in export) else export).append(failed)
    record = Verification(
        passed=bool(loop) and all(check.passed for check in [*export, *loop]),
        manifest_sha256=contract.sha256(directory / contract.MANIFEST_FILE),
        export=LayerProof(passed=all(check.passed for check in export), checks=tuple(export)),
        loop=LayerProof(passed=bool(loop) and all(check.passed for check in loop), checks=tuple(loop)),
        golden=golden,
        golden_limit=contract.GOLDEN_LIMIT,
        machine=contract.machine(),
        versions=contract.versions_of(_PACKAGES),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - began, 1),
    )
    record.write(directory)
    return record


class Probes:
    """Token sequences to test with: random, because a random text leaves no layer idle; the same on every run."""

    def __init__(self, manifest: Manifest, window: int) -> None:
        rng = np.random.default_rng(20)
        room = manifest.max_length
        self.sequence: Sequence[int] = rng.integers(0, manifest.vocab_size, min(PROBE_TOKENS, room)).tolist()
        lengths = [min(n, room) for n in (37, 11, 2, 23)]
        self.rows: list[Sequence[int]] = [rng.integers(0, manifest.vocab_size, n).tolist() for n in lengths]
        lengths = [max(1, min(n, room - GREEDY_STEPS)) for n in (1, 5, 24)]
        self.prompts: list[Sequence[int]] = [rng.integers(0, manifest.vocab_size, n).tolist() for n in lengths]
        self.greedy_steps = min(GREEDY_STEPS, room - 1)
        beyond = min(window + BEYOND_WINDOW, room) if window >= len(self.sequence) - BEYOND_WINDOW else 0
        self.beyond_window: Sequence[int] = rng.integers(0, manifest.vocab_size, beyond).tolist()


def _open(directory: Path, exact: str, threads: int | None) -> OnnxDecoder:
    mode: Exactness = "full" if exact == "full" else "batch"
    return OnnxDecoder(directory, slots=SLOTS, exact=mode, threads=threads)


def _numeric(decoder: OnnxDecoder, model: NumericReference, probes: Probes) -> Iterator[tuple[str, Check]]:
    """The checks of one mode, in the order in which they say most about a fault."""
    if decoder.exact == "batch":
        for check in check_numbers(decoder, model, probes.sequence):
            yield "export", check
        yield "export", check_far(decoder, model, probes.sequence)
        if probes.beyond_window:
            yield "export", check_window(decoder, model, probes.beyond_window)
        yield "loop", check_ragged(decoder, model, probes.rows)
        yield "loop", check_greedy(decoder, model, probes.prompts, probes.greedy_steps)
    yield "loop", check_splits(decoder, probes.sequence)
    yield "loop", check_neighbours(decoder, probes.sequence)
    yield "loop", check_reuse(decoder, probes.sequence)

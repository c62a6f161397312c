"""How fast a decoder is on this machine: prefill and decode, step by step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from bento_kv.contract.decoder import Decoder
from bento_kv.contract.manifest import Manifest
from bento_kv.contract.plan import Exactness, StepPlan, StepRow
from bento_kv.engine.config import EngineConfig
from bento_kv.errors import DecoderError
from bento_kv.runtime.open import open_decoder

_WARM_UP = 2
_PREFILLS = 5
_DECODES = 20


@dataclass(frozen=True, slots=True)
class Measurement:
    """Medians of one kind of step.

    Attributes:
        phase: `prefill`: prompts of `prompt` tokens, one a row, in steps of as many tokens as the server takes at once;
            `decode`: one token a row behind as many, in one step.
        batch: rows.
        prompt: tokens of a row before the step, or in the steps.
        step_ms: milliseconds of the steps, together.
        tokens_per_second: of all rows together.
    """

    phase: Literal["prefill", "decode"]
    batch: int
    prompt: int
    step_ms: float
    tokens_per_second: float


def measure(
    directory: Path,
    *,
    batches: Sequence[int],
    prompt: int,
    threads: int | None = None,
    exact: Exactness = "batch",
    progress: Callable[[str], None] = lambda _: None,
) -> list[Measurement]:
    """Time the decoder's steps, without scheduling and sampling.

    Args:
        directory: of the decoder.
        batches: numbers of rows.
        prompt: tokens of each row's prompt.
        threads: of a step; as many as this process has CPUs unless set.
        exact: mode of exactness.
        progress: told what is measured.

    Raises:
        ManifestError: the directory is not a decoder.
        DecoderError: the prompt and the tokens behind it do not fit in the decoder's positions.
    """
    manifest = Manifest.read(directory)
    length = prompt + 1
    if length > manifest.max_length:
        raise DecoderError(
            f"a prompt of {prompt} tokens and one behind it do not fit in the {manifest.max_length} positions of "
            f"{directory}; measure with a prompt of at most {manifest.max_length - 1}"
        )
    decoder = open_decoder(directory, slots=max(batches), max_length=length, threads=threads, exact=exact)
    ids = np.random.default_rng(0).integers(0, decoder.vocab_size, prompt).tolist()
    found = []
    for batch in batches:
        progress(f"{batch} row{'s' * (batch > 1)}, prompts of {prompt} tokens")
        rows = [StepRow(slot, ids, 0) for slot in range(batch)]
        prefill = _median_ms(decoder, _chunks(rows, EngineConfig().prefill_tokens), _PREFILLS)
        decode = _median_ms(decoder, [StepPlan([StepRow(slot, ids[:1], prompt) for slot in range(batch)])], _DECODES)
        found.append(Measurement("prefill", batch, prompt, prefill, 1000 * batch * prompt / prefill))
        found.append(Measurement("decode", batch, prompt, decode, 1000 * batch / decode))
    return found


def _chunks(rows: Sequence[StepRow], budget: int) -> list[StepPlan]:
    """Steps that compute the rows of whole prompts one behind the other, each of at most `budget` tokens."""
    return [
        StepPlan([StepRow(row.slot, row.tokens[start : start + budget], start)])
        for row in rows
        for start in range(0, len(row.tokens), budget)
    ]


def _median_ms(decoder: Decoder, plans: Sequence[StepPlan], repeats: int) -> float:
    times = []
    for _ in range(_WARM_UP + repeats):
        began = time.perf_counter()
        for plan in plans:
            decoder.step(plan)
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times[_WARM_UP:])

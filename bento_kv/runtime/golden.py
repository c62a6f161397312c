"""Golden prompts: what the proven decoder answered, replayed on the machine that serves."""

from __future__ import annotations

import platform
from collections.abc import Sequence

import numpy as np
import onnxruntime as ort

from bento_kv.contract.decoder import Decoder
from bento_kv.contract.plan import StepPlan, StepRow
from bento_kv.contract.verification import GoldenPrompt, GoldenStep, Verification
from bento_kv.errors import VerificationError
from bento_kv.host import processor

TOP = 5


def record_golden(decoder: Decoder, prompt: Sequence[int], steps: int) -> GoldenPrompt:
    """Decode greedily in slot 0 and note every step's likeliest tokens."""
    chunk, start = list(prompt), 0
    recorded = []
    for _ in range(steps):
        logits = decoder.step(StepPlan([StepRow(0, chunk, start)]))[0]
        start += len(chunk)
        top = np.argsort(-logits, kind="stable")[:TOP]
        recorded.append(GoldenStep(token=int(top[0]), top=tuple((int(i), float(logits[i])) for i in top)))
        chunk = [int(top[0])]
    return GoldenPrompt(prompt=tuple(prompt), steps=tuple(recorded))


def replay_golden(decoder: Decoder, record: Verification) -> float:
    """Feed the golden prompts and their recorded tokens, and compare the logits; slot 0 is used.

    Returns:
        The largest deviation of a recorded logit, relative to the largest of its step (at least 1).

    Raises:
        VerificationError: it is above the record's limit; the message names the runtime, the processor, the position.
    """
    fitting = [
        (number, golden)
        for number, golden in enumerate(record.golden)
        if len(golden.prompt) + len(golden.steps) - 1 <= decoder.max_length
    ]
    if not fitting:
        raise VerificationError(
            f"none of the golden prompts fits in {decoder.max_length} positions, so nothing can be checked; "
            "make slots longer"
        )
    worst = 0.0
    for number, golden in fitting:
        chunk, start = list(golden.prompt), 0
        for answered, step in enumerate(golden.steps):
            logits = decoder.step(StepPlan([StepRow(0, chunk, start)]))[0]
            start += len(chunk)
            chunk = [step.token]
            scale = max(1.0, max(abs(value) for _, value in step.top))
            deviations = [abs(float(logits[token]) - value) for token, value in step.top]
            # And no other token may have come out likelier than the likeliest, or as no number at all.
            deviations.append(float(logits.max()) - step.top[0][1] if np.isfinite(logits).all() else np.inf)
            deviation = max(deviations) / scale
            if not deviation <= record.golden_limit:
                raise VerificationError(
                    f"golden prompt {number}, token {answered} of the answer, after position {start - 1}: logits "
                    f"deviate by {deviation:.2g} from the proof, "
                    f"limit {record.golden_limit:.2g}. onnxruntime {ort.__version__} on {_processor()} does not "
                    f"compute what was proven with onnxruntime {record.versions.get('onnxruntime', '?')} on "
                    f"{record.machine.get('processor') or '?'}. Run `bento-kv verify` here."
                )
            worst = max(worst, deviation)
    return worst


def _processor() -> str:
    return processor()["processor"] or platform.machine()

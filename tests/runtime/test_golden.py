"""The replay at load: what was proven is what this machine computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from bento_kv.contract.plan import StepPlan
from bento_kv.contract.verification import Verification
from bento_kv.errors import VerificationError
from bento_kv.host import processor
from bento_kv.runtime.decoder import OnnxDecoder
from bento_kv.runtime.golden import replay_golden
from tests.damage import change_graph
from tests.proof.faults import compared, largest, spoil_logits_if


@pytest.mark.parametrize("exact", ["batch", "full"])
def test_a_proven_decoder_replays(exact: str, tiny_decoder: Path) -> None:
    decoder = OnnxDecoder(tiny_decoder, slots=1, exact=exact, threads=1)  # type: ignore[arg-type]
    assert replay_golden(decoder, Verification.read(tiny_decoder)) < 1e-5


def test_another_computation_is_refused_with_the_place(tiny_decoder: Path) -> None:
    """The message names the runtime, the processor and the first position that differs."""
    record = Verification.read(tiny_decoder)

    def change(model: onnx.ModelProto) -> None:
        spoil_logits_if(
            model, compared(model, largest(model, "position_ids"), "Greater", len(record.golden[0].prompt) + 1)
        )

    change_graph(tiny_decoder, change, manifest=None)
    with pytest.raises(VerificationError) as caught:
        replay_golden(OnnxDecoder(tiny_decoder, slots=1), record)
    message = str(caught.value)
    at = len(record.golden[0].prompt) + 2
    assert message.startswith(f"golden prompt 0, token 3 of the answer, after position {at}: logits deviate by")
    assert f"onnxruntime {ort.__version__} on {processor()['processor']} does not compute" in message
    assert f"proven with onnxruntime {record.versions['onnxruntime']} on {record.machine['processor']}" in message


def test_a_token_that_nobody_recorded_is_noticed(tiny_decoder: Path) -> None:
    decoder = OnnxDecoder(tiny_decoder, slots=1)
    record = Verification.read(tiny_decoder)
    recorded = {token for golden in record.golden for step in golden.steps for token, _ in step.top}
    other = next(token for token in range(decoder.vocab_size) if token not in recorded)
    right = decoder.step
    for value in (1e6, float("nan")):

        def wrong(plan: StepPlan, value: float = value) -> NDArray[np.float32]:
            logits = right(plan)
            logits[:, other] = value
            return logits

        decoder.step = wrong  # type: ignore[method-assign,assignment]
        with pytest.raises(VerificationError):
            replay_golden(decoder, record)


def test_golden_prompts_that_do_not_fit_are_left_out_but_never_all(tiny_decoder: Path) -> None:
    record = Verification.read(tiny_decoder)
    assert replay_golden(OnnxDecoder(tiny_decoder, slots=1, max_length=16), record) < 1e-5
    with pytest.raises(VerificationError, match="none of the golden prompts fits"):
        replay_golden(OnnxDecoder(tiny_decoder, slots=1, max_length=2), record)

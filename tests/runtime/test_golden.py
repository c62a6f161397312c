"""The replay at load: what was proven is what this machine computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bento_kv.errors import VerificationError
from bento_kv.manifest import Verification
from bento_kv.plan import StepPlan
from bento_kv.runtime.decoder import OnnxDecoder
from bento_kv.runtime.golden import replay_golden
from tests.damage import attention_nodes, change_graph, set_attribute


@pytest.mark.parametrize("exact", ["batch", "full"])
def test_a_proven_decoder_replays(exact: str, tiny_decoder: Path) -> None:
    decoder = OnnxDecoder(tiny_decoder, slots=1, exact=exact, threads=1)  # type: ignore[arg-type]
    assert replay_golden(decoder, Verification.read(tiny_decoder)) < 1e-5


def test_another_computation_is_refused_with_the_place(tiny_decoder: Path) -> None:
    change_graph(tiny_decoder, lambda model: set_attribute(attention_nodes(model)[0], "scale", 0.3), manifest=None)
    decoder = OnnxDecoder(tiny_decoder, slots=1)
    with pytest.raises(VerificationError, match=r"golden prompt \d, token \d: .* onnxruntime .* on .*proven with"):
        replay_golden(decoder, Verification.read(tiny_decoder))


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

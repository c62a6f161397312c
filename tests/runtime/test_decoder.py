"""The step: what it refuses, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bento_kv.contract.plan import StepPlan, StepRow
from bento_kv.errors import DecoderError, ManifestError
from bento_kv.runtime.decoder import OnnxDecoder


@pytest.fixture
def decoder(tiny_decoder: Path) -> OnnxDecoder:
    return OnnxDecoder(tiny_decoder, slots=4, max_length=32, threads=1)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "without rows"),
        ([StepRow(4, [1], 0)], "slot 4 is not one of 4"),
        ([StepRow(-1, [1], 0)], "slot -1 is not one of 4"),
        ([StepRow(0, [1], 0), StepRow(0, [2], 0)], "slot 0 is twice"),
        ([StepRow(0, [], 0)], "1 logits of 0 tokens"),
        ([StepRow(0, [1, 2], 0, logits=3)], "3 logits of 2 tokens"),
        ([StepRow(0, [1], 5)], "only 0 positions were ever written"),
        ([StepRow(0, [1] * 33, 0)], "do not fit in 32 positions"),
    ],
)
def test_plans_that_cannot_be(rows: list[StepRow], message: str, decoder: OnnxDecoder) -> None:
    with pytest.raises(DecoderError, match=message):
        decoder.step(StepPlan(rows))


def test_logits_come_in_the_order_of_the_rows_as_many_as_wanted(decoder: OnnxDecoder) -> None:
    rows = [StepRow(3, [5, 6, 7], 0, logits=2), StepRow(1, [9, 8], 0, logits=0), StepRow(2, [5, 6, 7, 8], 0, logits=1)]
    logits = decoder.step(StepPlan(rows))
    assert logits.shape == (3, decoder.vocab_size)
    alone = decoder.step(StepPlan([StepRow(0, [5, 6, 7, 8], 0, logits=4)]))
    assert np.array_equal(logits, alone[[1, 2, 3]])


def test_a_step_writes_its_own_slots_and_positions_only(decoder: OnnxDecoder) -> None:
    decoder.step(StepPlan([StepRow(0, [1, 2, 3], 0), StepRow(1, [4, 5, 6], 0), StepRow(2, [7, 8, 9], 0)]))
    before = [decoder.cache.read(slot, 32) for slot in range(4)]
    decoder.step(StepPlan([StepRow(0, [11], 3), StepRow(2, [12], 3)]))
    after = [decoder.cache.read(slot, 32) for slot in range(4)]
    for slot, changed in ((0, {3}), (1, set()), (2, {3}), (3, set())):
        for old, new in zip(before[slot], after[slot], strict=True):
            for a, b in zip(old, new, strict=True):
                assert set(np.flatnonzero((a != b).any(axis=(0, 2))).tolist()) == changed


def test_rewinding_is_a_smaller_start(decoder: OnnxDecoder) -> None:
    decoder.step(StepPlan([StepRow(0, [1, 2, 3], 0)]))
    first = decoder.step(StepPlan([StepRow(0, [4, 5], 3, logits=2)])).copy()
    decoder.step(StepPlan([StepRow(0, [99, 98, 97], 3)]))
    assert np.array_equal(decoder.step(StepPlan([StepRow(0, [4, 5], 3, logits=2)])), first)


def test_a_slot_can_be_filled_to_its_last_position(tiny_decoder: Path) -> None:
    ids = list(range(32))
    for exact in ("batch", "full"):
        decoder = OnnxDecoder(tiny_decoder, slots=2, max_length=32, exact=exact, threads=1)  # type: ignore[arg-type]
        whole = decoder.step(StepPlan([StepRow(0, ids, 0, logits=1)]))[0].copy()
        decoder.step(StepPlan([StepRow(1, ids[:31], 0)]))
        last = decoder.step(StepPlan([StepRow(1, ids[31:], 31)]))[0]
        np.testing.assert_allclose(last, whole, rtol=0, atol=1e-4)
        with pytest.raises(DecoderError, match="do not fit in 32 positions"):
            decoder.step(StepPlan([StepRow(1, [1], 32)]))


def test_a_row_near_its_end_shares_a_step_with_a_wide_one(decoder: OnnxDecoder) -> None:
    """The operator would refuse the wide row's padding behind the long row's past."""
    ids = list(range(32))
    alone = decoder.step(StepPlan([StepRow(0, ids, 0, logits=32)])).copy()
    decoder.step(StepPlan([StepRow(1, ids[:28], 0), StepRow(3, ids[:20], 0)]))
    rows = [StepRow(1, ids[28:30], 28, 2), StepRow(2, ids[:25], 0, 1), StepRow(3, ids[20:24], 20, 3)]
    logits = decoder.step(StepPlan(rows))
    assert np.array_equal(logits, alone[[28, 29, 24, 21, 22, 23]])


def test_more_positions_than_exported(tiny_decoder: Path) -> None:
    with pytest.raises(DecoderError, match="max_length 129 is more than the 128"):
        OnnxDecoder(tiny_decoder, slots=1, max_length=129)


def test_a_cache_that_does_not_fit_is_refused(tiny_decoder: Path) -> None:
    with pytest.raises(DecoderError, match=r"GiB, more than there is; lower slots or max_length"):
        OnnxDecoder(tiny_decoder, slots=2**40)


def test_a_directory_that_is_no_decoder(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"has no manifest\.json"):
        OnnxDecoder(tmp_path, slots=1)


def test_idle_slots_cost_address_space_only(tiny_decoder: Path) -> None:
    decoder = OnnxDecoder(tiny_decoder, slots=20_000)
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    assert decoder.cache.nbytes > 1.2 * resident

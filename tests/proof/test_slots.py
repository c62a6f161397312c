"""Loops that go wrong at a slot's end, or where a sequence is taken back: the checks by equality see them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bento_kv.contract.plan import Exactness, StepPlan
from bento_kv.contract.verification import Check
from bento_kv.proof.exactness import check_neighbours
from bento_kv.proof.slots import check_full, check_reuse
from bento_kv.proof.threads import ThreadComparison
from bento_kv.runtime.decoder import OnnxDecoder
from tests.damage import change_graph, set_attention

Step = Callable[[StepPlan], NDArray[np.float32]]


def _decoder(directory: Path, exact: Exactness = "batch", threads: int = 2) -> OnnxDecoder:
    return OnnxDecoder(directory, slots=5, exact=exact, threads=threads)


def _ids(decoder: OnnxDecoder, length: int) -> list[int]:
    ids: list[int] = np.random.default_rng(7).integers(0, decoder.vocab_size, length).tolist()
    return ids


def _passed(checks: list[Check]) -> dict[str, bool]:
    return {check.id: check.passed for check in checks}


@pytest.mark.parametrize("exact", ["batch", "full"])
def test_a_right_decoder_passes_to_the_last_bit(exact: Exactness, tiny_decoder: Path) -> None:
    decoder = _decoder(tiny_decoder, exact)
    checks = [*check_reuse(decoder, _ids(decoder, 100)), check_full(decoder, 5), check_full(decoder, 3)]
    assert [check.measured for check in checks] == [0.0] * 4
    assert "5 of 5 slots" in checks[2].explain
    assert "3 of 5 slots" in checks[3].explain


def test_a_last_position_that_reaches_into_the_next_slot_is_seen_where_slots_are_full(tiny_decoder: Path) -> None:
    decoder = _decoder(tiny_decoder)
    right = decoder.step

    def leaking(plan: StepPlan) -> NDArray[np.float32]:
        logits = right(plan)
        for row in plan.rows:
            if row.start + len(row.tokens) == decoder.max_length and row.slot + 1 < decoder.slots:
                decoder.cache._arrays[2][row.slot + 1, 0, 0, 0] += 1e-3
        return logits

    decoder.step = leaking  # type: ignore[method-assign,assignment]
    assert not check_full(decoder, 5).passed
    assert check_neighbours(decoder, _ids(decoder, 60)).passed
    assert all(_passed(check_reuse(decoder, _ids(decoder, 60))).values())


def test_a_loop_that_keeps_what_it_should_take_back_is_seen_where_slots_are_rewound(tiny_decoder: Path) -> None:
    """A key that was written once is not written again, unless the sequence starts over."""
    decoder = _decoder(tiny_decoder)
    right = decoder.step
    written = [0] * decoder.slots

    def keeping(plan: StepPlan) -> NDArray[np.float32]:
        stale = [(r.slot, r.start) for r in plan.rows if 0 < r.start < written[r.slot]]
        key = decoder.cache._arrays[0]
        before = [key[slot, :, at].copy() for slot, at in stale]
        logits = right(plan)
        for (slot, at), old in zip(stale, before, strict=True):
            key[slot, :, at] = old
        for row in plan.rows:
            written[row.slot] = row.start + len(row.tokens)
        return logits

    decoder.step = keeping  # type: ignore[method-assign,assignment]
    assert _passed(check_reuse(decoder, _ids(decoder, 100))) == {"slot-reuse-batch": True, "slot-rewind-batch": False}
    assert check_full(decoder, 5).passed


def test_a_slot_that_is_not_clean_is_seen_where_slots_are_used_again(tiny_decoder: Path) -> None:
    """What a longer sequence left behind is attended to."""
    decoder = _decoder(tiny_decoder)
    right = decoder.step
    longest = [0] * decoder.slots

    def haunted(plan: StepPlan) -> NDArray[np.float32]:
        logits = right(plan).copy()
        for at, row in enumerate(plan.rows):
            longest[row.slot] = max(longest[row.slot], row.start + len(row.tokens))
            logits[at] += 1e-6 * (longest[row.slot] - row.start - len(row.tokens))
        return logits

    decoder.step = haunted  # type: ignore[method-assign,assignment]
    assert not _passed(check_reuse(decoder, _ids(decoder, 100)))["slot-reuse-batch"]


@pytest.mark.usefixtures("all_cpus")
def test_threads_are_compared(tiny_decoder: Path, tmp_path: Path) -> None:
    two, one = _decoder(tiny_decoder), _decoder(tiny_decoder, threads=1)
    comparison = ThreadComparison(_ids(two, 120), served=2)
    assert comparison.others == [1]
    assert comparison.remember(two) == []
    same = comparison.compare(one, threads=1)
    assert (same.id, same.passed, same.measured) == ("threads-1", True, 0.0)

    change_graph(tiny_decoder, lambda model: set_attention(model, 0, "scale", 0.26), manifest={})
    other = comparison.compare(_decoder(tiny_decoder, threads=1), threads=1)
    assert not other.passed
    assert other.measured is not None

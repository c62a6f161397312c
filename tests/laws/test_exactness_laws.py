"""Laws 1 and 2 on real decoders: what is computed does not depend on how it is cut into steps, nor on the neighbours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bento_kv.contract.plan import Exactness, StepPlan, StepRow
from bento_kv.proof.exactness import check_neighbours, check_splits
from bento_kv.runtime.decoder import OnnxDecoder

pytestmark = pytest.mark.usefixtures("all_cpus")

TOKENS = 300


def _decoder(directory: Path, exact: Exactness, threads: int) -> OnnxDecoder:
    return OnnxDecoder(directory, slots=9, exact=exact, threads=threads)


def _ids(decoder: OnnxDecoder) -> list[int]:
    ids: list[int] = np.random.default_rng(7).integers(0, decoder.vocab_size, TOKENS).tolist()
    return ids


@pytest.mark.parametrize("threads", [1, 2])
def test_law_1_cached_equals_uncached_bit_for_bit_in_mode_full(demo_decoder: Path, threads: int) -> None:
    decoder = _decoder(demo_decoder, "full", threads)
    check = check_splits(decoder, _ids(decoder))
    assert check.measured == 0.0, check.explain


def test_law_1_cached_equals_uncached_within_rounding_in_mode_batch(demo_decoder: Path) -> None:
    decoder = _decoder(demo_decoder, "batch", 2)
    check = check_splits(decoder, _ids(decoder))
    assert check.measured is not None
    assert check.measured < 1e-5, check.explain


@pytest.mark.parametrize("exact", ["batch", "full"])
@pytest.mark.parametrize("threads", [1, 2])
def test_law_2_alone_equals_together_bit_for_bit(demo_decoder: Path, exact: Exactness, threads: int) -> None:
    decoder = _decoder(demo_decoder, exact, threads)
    check = check_neighbours(decoder, _ids(decoder))
    assert check.measured == 0.0, check.explain


@pytest.mark.parametrize("exact", ["batch", "full"])
def test_law_2_holds_for_one_token_beside_several(demo_decoder: Path, exact: Exactness) -> None:
    """A row that decodes beside one whose drafts are checked, and beside a chunk of a prompt."""
    decoder = _decoder(demo_decoder, exact, 2)
    ids = _ids(decoder)
    rows = [StepRow(2, ids[:4], 0, 4), StepRow(0, ids[100:101], 100), StepRow(1, ids[40:45], 40, 5, 4)]

    def step(*rows: StepRow) -> np.ndarray:
        for row in rows:
            if row.start:
                decoder.step(StepPlan([StepRow(row.slot, ids[: row.start], 0)]))
        return decoder.step(StepPlan(rows)).copy()

    assert np.array_equal(step(*rows), np.concatenate([step(row) for row in rows]))


@pytest.mark.parametrize("exact", ["batch", "full"])
def test_where_a_prompt_ends_does_not_change_a_bit(demo_decoder: Path, exact: Exactness) -> None:
    """At every length: the attention operator works in blocks, and a block of one query would be computed otherwise."""
    decoder = _decoder(demo_decoder, exact, 2)
    ids = _ids(decoder)
    whole = decoder.step(StepPlan([StepRow(0, ids, 0, TOKENS)])).copy()
    lengths = range(2, TOKENS + 1)
    differing = [
        n for n in lengths if not np.array_equal(decoder.step(StepPlan([StepRow(1, ids[:n], 0)]))[0], whole[n - 1])
    ]
    assert differing == []


def test_threads_do_not_change_a_bit(demo_decoder: Path) -> None:
    one, two = _decoder(demo_decoder, "full", 1), _decoder(demo_decoder, "full", 2)
    plan = StepPlan([StepRow(0, _ids(one), 0, TOKENS)])
    assert np.array_equal(one.step(plan), two.step(plan))


def test_the_checks_of_both_laws_can_fail(demo_decoder: Path) -> None:
    """Rows with as many queries as tokens, which is not exact; and a cache that a neighbour writes into."""
    decoder = _decoder(demo_decoder, "full", 2)
    ids = _ids(decoder)
    decoder._queries = lambda row: len(row.tokens)  # type: ignore[method-assign]
    assert not check_splits(decoder, ids).passed

    decoder = _decoder(demo_decoder, "batch", 2)
    right = decoder.step

    def leaking(plan: StepPlan) -> np.ndarray:
        logits = right(plan)
        if len(plan.rows) > 1:
            key = decoder.cache._arrays[0]
            key[plan.rows[0].slot, 0, 0, 0] += 1e-3
        return logits

    decoder.step = leaking  # type: ignore[method-assign]
    assert not check_neighbours(decoder, ids).passed

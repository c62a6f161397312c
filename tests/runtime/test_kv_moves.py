"""Keys and values moved between slots and beyond, and memory given back: the next step does not notice."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest

from bento_kv.contract.cache import KvSpec
from bento_kv.contract.decoder import Decoder
from bento_kv.contract.plan import Exactness, StepPlan, StepRow
from bento_kv.errors import DecoderError
from bento_kv.runtime.decoder import OnnxDecoder
from bento_kv.runtime.growing import GrowingGraph
from bento_kv.runtime.growing_decoder import GrowingDecoder
from bento_kv.runtime.kv_cache import InPlaceCache

IDS = [int(token) for token in np.random.default_rng(3).integers(0, 250, 24)]
LENGTH = 20


@pytest.fixture(params=["batch", "full", "growing"])
def decoder(request: pytest.FixtureRequest, tiny_decoder: Path, growing_file: Path) -> Decoder:
    if request.param == "growing":
        return GrowingDecoder(GrowingGraph.open(growing_file.parent, threads=1), slots=3, max_length=32, vocab_size=300)
    exact: Exactness = request.param
    return OnnxDecoder(tiny_decoder, slots=3, max_length=32, exact=exact, threads=1)


def rest(decoder: Decoder, slot: int) -> np.ndarray:
    """Logits of the tokens behind the first ones, which lie in the slot: a chunk, then a single one."""
    chunk = decoder.step(StepPlan([StepRow(slot, IDS[LENGTH:-1], LENGTH, logits=3)])).copy()
    return np.concatenate([chunk, decoder.step(StepPlan([StepRow(slot, IDS[-1:], len(IDS) - 1)]))])


@pytest.fixture
def expected(decoder: Decoder) -> np.ndarray:
    """What comes of it where the first tokens were computed; slot 0 is left with all of them, slot 1 with others."""
    decoder.step(StepPlan([StepRow(0, IDS[:LENGTH], 0), StepRow(1, IDS[::-1], 0)]))
    return rest(decoder, 0)


def test_a_copy_in_another_slot_goes_on_with_the_same_bits(decoder: Decoder, expected: np.ndarray) -> None:
    for target in (1, 2):
        decoder.copy(0, target, LENGTH)
        assert np.array_equal(rest(decoder, target), expected)
    assert np.array_equal(rest(decoder, 0), expected)


def test_what_was_saved_comes_back_with_the_same_bits(decoder: Decoder, expected: np.ndarray) -> None:
    saved = decoder.save(0, len(IDS))
    decoder.step(StepPlan([StepRow(0, IDS[::-1], 0)]))
    decoder.release(0, 0)
    for slot in (2, 0, 1):
        decoder.restore(slot, saved, LENGTH)
        assert np.array_equal(rest(decoder, slot), expected)


def test_what_stands_before_the_memory_given_back_stays(decoder: Decoder, expected: np.ndarray) -> None:
    neighbour = decoder.cache.read(1, len(IDS))
    decoder.release(0, LENGTH)
    decoder.release(2, 0)
    assert np.array_equal(rest(decoder, 0), expected)
    for old, new in zip(neighbour, decoder.cache.read(1, len(IDS)), strict=True):
        assert np.array_equal(np.stack(old), np.stack(new))


@pytest.mark.usefixtures("expected")
def test_nobody_reads_what_was_given_back_or_never_copied(decoder: Decoder) -> None:
    decoder.release(0, 5)
    with pytest.raises(DecoderError, match="only 5 positions were ever written"):
        decoder.step(StepPlan([StepRow(0, [1], 6)]))
    decoder.copy(0, 1, 4)
    with pytest.raises(DecoderError, match="only 4 positions were ever written"):
        decoder.step(StepPlan([StepRow(1, [1], 5)]))
    decoder.release(0, 0)
    with pytest.raises(DecoderError, match="only 0 positions were ever written"):
        decoder.step(StepPlan([StepRow(0, [1], 1)]))


def test_bytes_of_a_token(decoder: Decoder) -> None:
    cached = decoder.cache.read(0, 0)
    assert decoder.cache.token_bytes == sum(4 * side.shape[0] * side.shape[2] for layer in cached for side in layer)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_idle_slots_give_their_memory_back_and_their_neighbours_keep_theirs() -> None:
    length, heads, dim = 4096, 4, 64
    cache = InPlaceCache([KvSpec(kv_heads=heads, head_dim=dim)] * 4, 3, length)
    rng = np.random.default_rng(0)
    sides = [rng.standard_normal((heads, length, dim), np.float32) for _ in range(2)]
    for slot in range(3):
        cache.write(slot, [(sides[0], sides[1])] * 4)
    full = _resident()
    of_a_slot = cache.token_bytes * length
    cache.release(1, 0)
    assert full - _resident() > 0.9 * of_a_slot
    cache.release(2, length // 2)
    assert full - _resident() > 1.4 * of_a_slot
    for slot, kept in ((0, length), (2, length // 2)):
        for key, value in cache.read(slot, kept):
            assert np.array_equal(key, sides[0][:, :kept])
            assert np.array_equal(value, sides[1][:, :kept])

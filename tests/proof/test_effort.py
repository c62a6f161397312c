"""How much is computed: everything of a small model, every kind of check of a large one."""

from __future__ import annotations

import pytest

from bento_kv.contract.cache import KvSpec
from bento_kv.contract.manifest import Manifest, Source, TokenIds
from bento_kv.proof.effort import LEAST_TEXTS, LEAST_WALKS, SEQUENCE, SHORT, WALKS, Effort
from bento_kv.proof.exactness import SMALL, _without_ones, split_walks
from bento_kv.proof.passages import CONVERSATIONS, PASSAGES

SLOTS = 17


def _manifest(max_length: int) -> Manifest:
    return Manifest(
        source=Source(id="x", revision=None, weights_sha256="0"),
        architecture="X",
        layout="in-place",
        precision="fp32",
        opset={},
        ir_version=10,
        inputs=(),
        outputs=(),
        layers=(KvSpec(kv_heads=3, head_dim=64),),
        vocab_size=100,
        max_length=max_length,
        token_ids=TokenIds(bos=None, eos=(), pad=None),
        files={"model.onnx": "0"},
        versions={},
        created="",
    )


def _plan(max_length: int, parameters: float) -> Effort:
    return Effort.plan(_manifest(max_length), lambda tokens: 2 * parameters * tokens, SLOTS)


def test_a_small_model_is_computed_to_its_end() -> None:
    effort = _plan(1024, 1e6)
    assert set(effort.lengths) >= {*range(1, SHORT + 1), 63, 64, 65, 127, 128, 129, 256, 257, 511, 512, 513, 1023, 1024}
    assert effort.lengths == tuple(sorted(effort.lengths))
    assert (effort.slot_length, effort.full_slots, effort.walks) == (1024, SLOTS, WALKS)
    assert effort.texts >= len(PASSAGES) + len(CONVERSATIONS)


def test_a_larger_model_gets_less_of_each_and_nothing_of_none() -> None:
    effort = _plan(8192, 135e6)
    assert set(effort.lengths) >= {*range(1, SHORT + 1), 127, 128, 129, 255, 256, 257}
    assert 1024 <= effort.longest < 8192
    assert (effort.slot_length, effort.full_slots, effort.walks) == (SEQUENCE, 3, LEAST_WALKS)


def test_a_model_that_no_budget_suffices_for_still_has_lengths() -> None:
    effort = _plan(8192, 1e13)
    assert effort.lengths == (1,)
    assert (effort.full_slots, effort.walks, effort.texts) == (3, LEAST_WALKS, LEAST_TEXTS)


@pytest.mark.parametrize("max_length", [32, 33, 64, 100])
def test_no_length_is_beyond_the_room(max_length: int) -> None:
    effort = _plan(max_length, 1e6)
    assert effort.longest == max_length
    assert min(effort.lengths) == 1
    assert effort.slot_length == max_length


@pytest.mark.parametrize("walks", [LEAST_WALKS, WALKS])
@pytest.mark.parametrize(("total", "head_dim"), [(300, 64), (128, 16), (32, 8), (300, 256)])
def test_walks_split_the_whole_and_meet_every_size(total: int, head_dim: int, walks: int) -> None:
    large = [64, 128, *(blocks * head_dim + 1 for blocks in (1, 2, 4))]
    found = split_walks(total, large, walks)
    assert all(sum(sizes) == total for sizes in found)
    assert walks <= len(found) <= walks + 3
    met = {size for sizes in found for size in sizes}
    assert met >= {*(n for n in large if n < total), *(n for n in SMALL if n <= total // 8)}
    # Single tokens, which take another way through the graph, stand at many places.
    assert len({sum(s[:i]) for s in found for i, size in enumerate(s) if size == 1}) >= min(24, total // 6)


@pytest.mark.parametrize("sizes", [[1, 1, 3, 1], [1], [1, 1], [5, 1, 1, 2], [2, 3]])
def test_chunks_of_one_are_joined_to_others(sizes: list[int]) -> None:
    joined = _without_ones(sizes)
    assert sum(joined) == sum(sizes)
    assert 1 not in joined or sizes == [1]

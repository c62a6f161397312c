"""Query heads that share keys as queries of one head: the same bits as any other way to compute a token."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from bento_kv.contract.files import MODEL_FILE
from bento_kv.contract.manifest import Manifest
from bento_kv.contract.plan import Exactness, StepPlan, StepRow
from bento_kv.proof.parity import TorchReference
from bento_kv.proof.proof import prove
from bento_kv.proof.report import render
from bento_kv.runtime.decoder import OnnxDecoder
from bento_kv.runtime.group_bias import GroupBias
from tests import decoders
from tests.damage import attention_nodes, change_graph, set_attribute
from tests.effort import slow_but

# By architecture: query heads, heads of keys, and what makes it worth a look.
GROUPS = {
    "llama": (4, 2),
    "qwen2": (6, 1),  # biases
    "cohere": (10, 2),  # another order of rotated pairs
    "granite": (4, 1),  # a scale of its own
    "olmo2": (8, 2),  # norms of queries and keys
    "stablelm": (4, 2),  # turns a part of its heads, outside the operator
    "phi3": (4, 2),  # queries, keys and values as one product already
}
IDS = np.random.default_rng(0).integers(0, 250, 60).tolist()


class Exported(Protocol):
    """Decoders of `GROUPS`, read only, each exported when it is first asked for."""

    def __call__(self, architecture: str, *, kv_cache: str = "fp32", precision: str = "fp32") -> Path: ...


def _source(architecture: str) -> Path:
    heads, kv_heads = GROUPS[architecture]
    sizes = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "hidden_size": 16 * heads}
    return decoders.source(architecture, **sizes)


@pytest.fixture(scope="module")
def exported() -> Exported:
    def make(architecture: str, *, kv_cache: str = "fp32", precision: str = "fp32") -> Path:
        return decoders.exported(_source(architecture), precision=precision, kv_cache=kv_cache)

    return make


def whole(decoder: OnnxDecoder, ids: list[int]) -> NDArray[np.float32]:
    return decoder.step(StepPlan([StepRow(0, ids, 0, len(ids))])).copy()


def one_by_one(decoder: OnnxDecoder, ids: list[int], prompt: int, slot: int = 1) -> NDArray[np.float32]:
    steps = [decoder.step(StepPlan([StepRow(slot, ids[:prompt], 0, prompt)])).copy()]
    steps += [decoder.step(StepPlan([StepRow(slot, ids[at : at + 1], at)])).copy() for at in range(prompt, len(ids))]
    return np.concatenate(steps)


@pytest.mark.parametrize("kv_cache", ["fp32", "int8"])
@pytest.mark.parametrize("architecture", slow_but(("cohere", "llama", "qwen2"), sorted(GROUPS)))
def test_token_by_token_is_one_step_over_all(architecture: str, kv_cache: str, exported: Exported) -> None:
    directory = exported(architecture, kv_cache=kv_cache)
    heads, kv_heads = GROUPS[architecture]
    assert Manifest.read(directory).group == heads // kv_heads
    decoder = OnnxDecoder(directory, slots=3, exact="full")
    expected = whole(decoder, IDS)
    for prompt in (1, 7):
        assert np.array_equal(one_by_one(decoder, IDS, prompt), expected)
    for side in range(2):
        one, other = (layer[side] for slot in (0, 1) for layer in decoder.cache.read(slot, len(IDS))[:1])
        assert np.array_equal(one, other)


@pytest.mark.usefixtures("all_cpus")
@pytest.mark.parametrize(("architecture", "grouped"), [("llama", False), ("qwen2", True)])
def test_large_groups_are_exact_in_mode_batch_too(architecture: str, grouped: bool, exported: Exported) -> None:
    """And small ones are not: they take the kernel for single queries, which is faster for them."""
    decoder = OnnxDecoder(exported(architecture), slots=2, exact="batch", threads=2)
    assert np.array_equal(one_by_one(decoder, IDS, 7), whole(decoder, IDS)) == grouped


@pytest.mark.usefixtures("all_cpus")
def test_many_threads_for_few_heads_of_keys_take_the_kernel_for_single_queries(exported: Exported) -> None:
    decoder = OnnxDecoder(exported("qwen2"), slots=2, exact="batch", threads=3)
    assert not np.array_equal(one_by_one(decoder, IDS, 7), whole(decoder, IDS))


@pytest.mark.usefixtures("all_cpus")
@pytest.mark.parametrize("exact", ["batch", "full"])
def test_rows_of_any_length_share_a_step(exact: Exactness, exported: Exported) -> None:
    """Some come, some sit out, some rewind, some take several tokens at a time: each gets what it gets alone."""
    directory = exported("qwen2", precision="int4")
    rng = np.random.default_rng(1)
    rows = {slot: rng.integers(0, 250, 60).tolist() for slot in range(4)}
    alone = OnnxDecoder(directory, slots=1, exact=exact, threads=2)
    prompts = {0: 3, 1: 40, 2: 17, 3: 9}
    expected = {slot: one_by_one(alone, ids, prompts[slot], slot=0) for slot, ids in rows.items()}
    together = OnnxDecoder(directory, slots=4, exact=exact, threads=2)
    at = dict(prompts)
    for slot, prompt in prompts.items():
        together.step(StepPlan([StepRow(slot, rows[slot][:prompt], 0)]))
    for step in range(60):
        plan = []
        for slot in range(4):
            if rng.random() < 0.3:
                continue
            if step % 9 == 8:
                at[slot] = max(prompts[slot], at[slot] - 4)
            if at[slot] < 58:
                count = 3 if slot == 2 and step % 5 == 4 and at[slot] < 55 else 1
                plan.append(StepRow(slot, rows[slot][at[slot] : at[slot] + count], at[slot], count, count - 1))
                at[slot] += count
        if not plan:
            continue
        logits = together.step(StepPlan(plan))
        for row, got in zip(plan, np.split(logits, np.cumsum([row.logits for row in plan])[:-1]), strict=True):
            assert np.array_equal(got, expected[row.slot][row.start : row.start + row.logits])


def test_a_slot_can_be_filled_to_its_last_position(exported: Exported) -> None:
    directory = exported("cohere")
    decoder = OnnxDecoder(directory, slots=2, max_length=48, exact="full")
    assert np.array_equal(one_by_one(decoder, IDS[:48], 2), whole(decoder, IDS[:48]))


@pytest.mark.parametrize("form", ["grouped", "apart"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_a_fault_in_either_form_fails_the_proof(
    architecture: str, form: str, exported: Exported, tmp_path: Path
) -> None:
    decoder = exported(architecture)
    directory = Path(shutil.copytree(decoder, tmp_path / "decoder"))

    def reference(manifest: Manifest) -> TorchReference:
        return TorchReference(str(_source(architecture)), manifest)

    assert prove(directory, reference).passed

    def change(model: object) -> None:
        (node,) = [node for node in attention_nodes(model, 1) if form in node.name]  # type: ignore[arg-type]
        set_attribute(node, "scale", 0.26)

    change_graph(directory, change, manifest={})
    record = prove(directory, reference)
    failed = {check.id for check in (*record.export.checks, *record.loop.checks) if not check.passed}
    assert "cached-equals-uncached-full" in failed, render(record)


@pytest.mark.parametrize("kv_cache", ["fp32", "int8"])
def test_each_node_stands_behind_what_it_reads(kv_cache: str, exported: Exported) -> None:
    """Also in a first layer, whose queries nothing else asks for before."""
    onnx.checker.check_model(str(exported("llama", kv_cache=kv_cache) / MODEL_FILE))


def test_the_bias_hides_the_copies_and_nothing_else() -> None:
    rng = np.random.default_rng(2)
    bias = GroupBias(slots=3, group=4, capacity=43)
    at = np.array([-1, 4, 38])
    for _ in range(200):
        at = np.minimum(at + 1, 39)
        chosen = np.flatnonzero(rng.random(3) < 0.6)
        bias.newest(chosen, at[chosen])
        for slot in chosen:
            seen = bias.array[slot, 0]
            assert (seen[:, : at[slot] + 1] == 0).all()
            assert np.isneginf(seen[:, at[slot] + 1 : at[slot] + 4]).all()
        at = np.where(rng.random(3) < 0.2, rng.integers(-1, 40, 3), at)

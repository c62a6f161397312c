"""Each pass over the traced graph computes what was computed before it, and finds what it is there for."""

from __future__ import annotations

from functools import cache, partial

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from bento_kv.contract.cache import KvSpec
from bento_kv.contract.plan import StepRow
from bento_kv.export import attention
from bento_kv.export.graph import clean_up
from bento_kv.export.graph.activations import fuse_silu
from bento_kv.export.graph.layout import address_cells, choose_tokens_once
from bento_kv.export.graph.norms import skip_norms
from bento_kv.export.graph.origins import Origins
from bento_kv.export.graph.projections import fold_transposes, pack_attention_inputs, plain_products
from bento_kv.export.graph.rotary import rotate_in_attention, tabulate_rotary
from bento_kv.export.model import fix_rotary, survey
from bento_kv.export.rotary import Rotary
from bento_kv.runtime.kv_cache import InPlaceCache
from bento_kv.runtime.packed import packed_feeds
from tests import decoders
from tests.effort import slow_but

LENGTH = 64
# The plain form, another order of rotated pairs, matrices stored the other way round, a rotated part of each head.
FAST = ("llama", "cohere", "gpt2", "gpt_neox")
# By architecture: passes that must find something, and how the operator rotates, if it does.
FOUND: dict[str, tuple[set[str], Rotary | None]] = {
    "llama": ({"pack", "cells", "tokens", "norms", "silu"}, Rotary(False, slice(0, 8))),
    "qwen2": ({"pack", "cells", "tokens", "norms", "silu"}, Rotary(False, slice(0, 8))),
    "cohere": ({"pack", "cells", "tokens", "silu", "fold"}, Rotary(True, slice(0, 16, 2))),
    # Rotates the first quarter of its heads, in parts of two pairs, which the operator does not take.
    "gpt_neox": ({"cells", "tokens", "norms"}, None),
    "gpt2": ({"products", "pack", "cells", "tokens", "norms", "fold"}, None),
    "opt": ({"products", "cells", "tokens", "norms"}, None),
    "phi3": ({"pack", "cells", "tokens", "norms"}, Rotary(False, slice(0, 8))),
}


@cache
def traced(architecture: str, *, rotate: bool = True) -> tuple[ir.Model, tuple[Rotary | None, ...]]:
    attention.register()
    source = decoders.source(architecture)
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32, attn_implementation=attention.SURVEY
    ).eval()
    facts = survey(model)
    fix_rotary(model)
    rotations = facts.rotations if rotate else (None,) * len(facts.rotations)
    graph = decoders.trace(model, facts.layers, 23, rotations)
    rotate_in_attention(graph, LENGTH + 1)
    clean_up(graph)
    tabulate_rotary(graph, LENGTH)
    clean_up(graph)
    return graph, facts.rotations


def logits(model: ir.Model) -> NDArray[np.float32]:
    """Of a prompt, a chunk behind it and a token of another row, all in a second step, and of both rows' first one."""
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    shapes = {each.name: each.shape for each in session.get_inputs()}
    layers: list[KvSpec] = []
    while (shape := shapes.get(f"past_key_values.{len(layers)}.key")) is not None:
        layers.append(KvSpec(kv_heads=shape[1], head_dim=shape[3]))
    kv = InPlaceCache(layers, 2, LENGTH)
    ids = np.random.default_rng(4).integers(0, 200, 20).tolist()
    found = []
    for rows, queries in (
        ([StepRow(0, ids[:9], 0, 9), StepRow(1, ids[:4], 0)], [10, 4]),
        ([StepRow(1, ids[4:7], 4, 2), StepRow(0, ids[9:10], 9)], [4, 2]),
    ):
        binding = session.io_binding()
        kv.bind(binding, 0, 2)
        feeds = packed_feeds(rows, queries, 0, 2, kv.capacity)
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        binding.bind_output("logits", "cpu")
        session.run_with_iobinding(binding)
        found.append(binding.get_outputs()[-1].numpy().copy())
    return np.concatenate(found)


@pytest.mark.parametrize("architecture", slow_but(FAST, sorted(FOUND)))
def test_each_pass_computes_what_was_computed_before(architecture: str) -> None:
    graph, _ = traced(architecture)
    graph = graph.clone()
    before = logits(graph)
    found = set()
    for name, step in (
        ("products", plain_products),
        ("pack", partial(pack_attention_inputs, origins=Origins({}))),
        ("cells", address_cells),
        ("tokens", choose_tokens_once),
        ("norms", skip_norms),
        ("silu", fuse_silu),
        ("fold", fold_transposes),
    ):
        if step(graph):
            found.add(name)
        clean_up(graph)
        after = logits(graph)
        assert np.abs(after - before).max() <= 2e-6 * np.abs(before).max(), name
        before = after
    assert found >= FOUND[architecture][0]


@pytest.mark.parametrize("architecture", slow_but(FAST, sorted(FOUND)))
def test_the_operator_rotates_as_the_model_does(architecture: str) -> None:
    inside, forms = traced(architecture)
    expected = FOUND[architecture][1]
    assert all(form == expected for form in forms)
    nodes = [node for node in inside.graph if node.op_type == "GroupQueryAttention"]
    assert all(node.attributes["do_rotary"].value == int(expected is not None) for node in nodes)
    outside, _ = traced(architecture, rotate=False)
    one, other = logits(inside), logits(outside)
    assert np.abs(one - other).max() <= 1e-5 * np.abs(other).max()


@pytest.mark.parametrize("architecture", slow_but(["llama"], ["llama", "qwen2", "phi3"]))
def test_nothing_moves_what_the_weights_can_hold_in_order(architecture: str) -> None:
    graph, _ = traced(architecture)
    graph = graph.clone()
    for step in (partial(pack_attention_inputs, origins=Origins({})), address_cells, choose_tokens_once):
        step(graph)
        clean_up(graph)
    kinds = [node.op_type for node in graph.graph]
    assert not {"Reshape", "RotaryEmbedding", "Squeeze"} & set(kinds)
    # The one left turns the embedding into the head.
    assert kinds.count("Transpose") <= 1


def test_a_column_order_is_told_in_pieces_of_parameters() -> None:
    rng = np.random.default_rng(0)
    one, other = (rng.standard_normal((6, 8)).astype(np.float32) for _ in range(2))
    origins = Origins({"one": one.T.copy(), "other": other.T.copy()})
    order = np.array([*range(8, 12), *range(8), *range(12, 16)])
    origins.merge("both", [one, other], order)
    weight = np.concatenate([one, other], axis=1)[:, order]
    assert origins.of("both", weight) == ("other[0:4]", "one", "other[4:8]")
    assert origins.of("alone", one) == ("one",)
    assert origins.of("unknown", one + 1) is None

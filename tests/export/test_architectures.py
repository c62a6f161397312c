"""Every architecture of the zoo: exported, then the whole proof, whose reference is the unpatched torch model."""

from __future__ import annotations

import onnx
import pytest

from bento_kv.contract.files import MODEL_FILE
from bento_kv.contract.manifest import Manifest
from tests import decoders
from tests.damage import attention_nodes
from tests.effort import slow_but
from tests.zoo import CONFIGS

# Windows and capped logits, sinks and experts, the plain form, learned positions and biases.
FAST = ("gemma2", "gpt_oss", "llama", "opt")


@pytest.mark.parametrize("architecture", slow_but(FAST, sorted(CONFIGS)))
def test_exported_decoder_is_proven(architecture: str) -> None:
    decoder = decoders.proven(architecture)
    manifest = Manifest.read(decoder)
    assert len(manifest.layers) == 2

    nodes = attention_nodes(onnx.load(decoder / MODEL_FILE, load_external_data=False))
    windows = [a.i for node in nodes for a in node.attribute if a.name == "local_window_size"]
    assert bool(windows) == ("sliding_window" in CONFIGS[architecture])
    # Heads are grouped where they share keys, unless windows slide.
    grouped = "num_key_value_heads" in CONFIGS[architecture] and not windows
    assert (manifest.group, manifest.passes["group_queries"]) == ((2, 2) if grouped else (1, 0))
    assert manifest.padding == 1


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        pytest.param({"rope_type": "linear", "factor": 2.0}, marks=pytest.mark.slow),
        pytest.param({"rope_type": "yarn", "factor": 4.0}, marks=pytest.mark.slow),
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_scaled_rotary_is_proven(rope: dict[str, float | str]) -> None:
    parameters = {"rope_theta": 10000.0, "original_max_position_embeddings": 32, **rope}
    assert decoders.proven(decoders.source(rope_parameters=parameters))


def test_rotary_that_changes_with_the_length_is_limited_to_what_it_was_trained_for() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 64}
    decoder = decoders.proven(decoders.source(rope_parameters=rope))
    assert Manifest.read(decoder).max_length == 64


def test_head_size_and_heads_need_not_divide_the_hidden_size() -> None:
    source = decoders.source(hidden_size=48, head_dim=24, num_attention_heads=6, num_key_value_heads=3)
    manifest = Manifest.read(decoders.proven(source))
    assert [(layer.kv_heads, layer.head_dim) for layer in manifest.layers] == [(3, 24), (3, 24)]

"""Faults in what a graph computes, its contract being kept: the proof fails, and names the right check."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from bento_kv.contract.files import sha256
from bento_kv.contract.manifest import Manifest
from bento_kv.contract.verification import Verification
from bento_kv.errors import VerificationError
from bento_kv.host import available_cpus
from bento_kv.proof.parity import TorchReference
from bento_kv.proof.proof import prove
from bento_kv.proof.report import exactness, render, render_html
from tests import decoders
from tests.damage import attention_nodes, change_graph, flip_weight_byte, set_attention, set_attribute
from tests.zoo import save_model

MODES = ("full", "batch")


def _prove(directory: Path, source: Path) -> Verification:
    return prove(directory, lambda manifest: TorchReference(str(source), manifest))


def _failed(record: Verification) -> set[str]:
    return {check.id for layer in (record.export, record.loop) for check in layer.checks if not check.passed}


@pytest.mark.usefixtures("all_cpus")
def test_the_record_is_bound_and_complete(tiny_source: Path, tiny_decoder: Path) -> None:
    record = _prove(tiny_decoder, tiny_source)
    assert record == Verification.read(tiny_decoder)
    assert record.passed
    assert record.manifest_sha256 == sha256(tiny_decoder / "manifest.json")
    assert record.machine["processor"]
    assert record.versions["onnxruntime"]
    checks = {check.id: check for layer in (record.export, record.loop) for check in layer.checks}
    for exact in ("cached-equals-uncached-full", "alone-equals-together-full", "alone-equals-together-batch"):
        assert (checks[exact].measured, checks[exact].limit) == (0.0, 0.0)
    for exact in ("slot-reuse", "slot-rewind", "full-slots"):
        assert all(
            (checks[f"{exact}-{mode}"].measured, checks[f"{exact}-{mode}"].limit) == (0.0, 0.0) for mode in MODES
        )
    assert 0 < (checks["prefill-logits"].measured or 0) < 1e-5
    assert {id for id in checks if id.startswith("threads-")} == {
        f"threads-{n}" for n in (1, 2) if n != available_cpus()
    }
    assert all(len(prompt.steps) == 8 and len(prompt.steps[0].top) == 5 for prompt in record.golden)
    assert "Proof passed" in render(record)


def test_progress_counts_to_the_end(tiny_source: Path, tiny_decoder: Path) -> None:
    said: list[str] = []
    prove(tiny_decoder, lambda manifest: TorchReference(str(tiny_source), manifest), progress=said.append)
    found = [re.match(r"(\d+)(?:/(\d+))? .+, \d+ s so far$", line) for line in said]
    assert [int(match[1]) for match in found if match] == list(range(1, len(said) + 1))
    assert {match[2] for match in found[1:] if match} == {str(len(said))}


def test_the_report_says_what_is_exact_here(tiny_source: Path, tiny_decoder: Path) -> None:
    record = Verification.read(tiny_decoder)
    page = render_html(record, Manifest.read(tiny_decoder))
    for layer in (record.export, record.loop):
        assert all(f"<code>{check.id}</code>" in page for check in layer.checks)
    assert page.count("<td>no</td>") == len(exactness(record)) - 1  # rounding in mode batch is what there is
    assert "no   which neighbours share the steps, mode batch" in render(record)

    broken = record.loop.model_copy(
        update={
            "checks": tuple(
                c.model_copy(update={"measured": 2e-7, "passed": False}) if c.id == "alone-equals-together-batch" else c
                for c in record.loop.checks
            )
        }
    )
    text = render(record.model_copy(update={"loop": broken, "passed": False}))
    assert re.search(r"yes  which neighbours share the steps, mode batch +2\.0e-07", text)


def _scale(model: onnx.ModelProto) -> None:
    set_attention(model, 1, "scale", 0.2)


def _window(model: onnx.ModelProto) -> None:
    set_attention(model, 0, "local_window_size", 60)


def _swap_layers(model: onnx.ModelProto) -> None:
    """Layer 0 reads and writes the cache of layer 1 and the other way round."""
    names = {
        f"{kind}.{layer}.key": f"{kind}.{1 - layer}.key" for kind in ("past_key_values", "present") for layer in (0, 1)
    }
    for node in (*attention_nodes(model), *model.graph.node):
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def _stuck_positions(model: onnx.ModelProto) -> None:
    """Everything is rotated as if at position 0, whatever the step's positions are."""
    zero = onnx.helper.make_node("Sub", ["position_ids", "position_ids"], ["no_positions"])
    for node in model.graph.node:
        if node.op_type in ("Gather", "GatherND"):
            node.input[:] = ["no_positions" if name == "position_ids" else name for name in node.input]
    model.graph.node.insert(0, zero)


@pytest.mark.parametrize(
    ("change", "checks"),
    [
        (_scale, {"prefill-logits", "decode-logits", "ragged-rows", "greedy-tokens"}),
        (_window, {"prefill-logits", "decode-logits"}),
        (_swap_layers, {"step0-cache"}),
        (_stuck_positions, {"prefill-logits", "step0-cache"}),
    ],
)
def test_a_fault_of_the_export_fails_the_proof(
    change: Callable[[onnx.ModelProto], None], checks: set[str], tiny_source: Path, tiny_decoder: Path
) -> None:
    change_graph(tiny_decoder, change, manifest={})
    record = _prove(tiny_decoder, tiny_source)
    assert not record.passed
    assert not record.export.passed
    assert checks <= _failed(record), render(record)
    assert Verification.read(tiny_decoder) == record


def test_wrong_positions_far_away_and_a_wrong_window_fail_the_proof(tmp_path: Path) -> None:
    """Beyond what the other probes reach: position 700 of 1024, and a window of 400."""
    source = decoders.source("mistral", max_position_embeddings=1024, sliding_window=400)
    shutil.copytree(decoders.proven(source), tmp_path / "decoder")

    def widen(model: onnx.ModelProto) -> None:
        for node in attention_nodes(model):
            set_attribute(node, "local_window_size", 1000)

    shutil.copytree(tmp_path / "decoder", tmp_path / "wide")
    change_graph(tmp_path / "wide", widen, manifest={})
    assert _failed(_prove(tmp_path / "wide", source)) >= {"sliding-window"}

    def forget(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name.startswith(("rotary.", "rotary_table.")) and len(tensor.dims) == 2:
                table = numpy_helper.to_array(tensor, base_dir=str(tmp_path / "decoder")).copy()
                table[700:] = 0
                tensor.CopyFrom(numpy_helper.from_array(table, tensor.name))

    change_graph(tmp_path / "decoder", forget, manifest={})
    assert _failed(_prove(tmp_path / "decoder", source)) >= {"far-positions"}


def test_one_weight_that_is_off_fails_the_proof(tiny_source: Path, tiny_decoder: Path) -> None:
    """The file is changed and its hash brought in line, as a converter would that loses precision in one tensor."""

    def change(model: onnx.ModelProto) -> None:
        weight = next(node.input[1] for node in reversed(model.graph.node) if node.op_type == "MatMul")
        producer = {name: node for node in model.graph.node for name in node.output}
        stored = producer[weight].input[0] if weight in producer else weight  # the embedding, transposed
        tensor = next(t for t in model.graph.initializer if t.name == stored)
        weights: NDArray[np.float32] = numpy_helper.to_array(tensor, base_dir=str(tiny_decoder)).copy()
        weights.flat[7] += 0.05
        tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))

    change_graph(tiny_decoder, change, manifest={})
    assert "prefill-logits" in _failed(_prove(tiny_decoder, tiny_source))


def test_a_broken_contract_ends_the_proof_before_anything_runs(tiny_source: Path, tiny_decoder: Path) -> None:
    flip_weight_byte(tiny_decoder)
    record = _prove(tiny_decoder, tiny_source)
    assert not record.passed
    assert _failed(record) == {"file-hashes"}
    assert record.loop.checks == ()
    assert "not reached" in render(record)


def test_a_graph_that_the_runtime_refuses_fails_the_proof(tiny_source: Path, tiny_decoder: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        attention_nodes(model)[0].op_type = "NoSuchAttention"

    change_graph(tiny_decoder, change, manifest={})
    record = _prove(tiny_decoder, tiny_source)
    assert _failed(record) == {"runs"}


def test_a_reference_with_other_weights_is_refused(tiny_decoder: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", "llama", seed=1)
    with pytest.raises(VerificationError, match="other weights"):
        TorchReference(str(other), Manifest.read(tiny_decoder))


def test_the_record_is_json_without_nan(tiny_source: Path, tiny_decoder: Path) -> None:
    """A decoder that computes NaN fails, and its record can be read by any JSON reader."""

    def change(model: onnx.ModelProto) -> None:
        set_attention(model, 1, "scale", float("nan"))

    change_graph(tiny_decoder, change, manifest={})
    record = _prove(tiny_decoder, tiny_source)
    assert not record.passed
    json.loads((tiny_decoder / "verification.json").read_text(), parse_constant=pytest.fail)

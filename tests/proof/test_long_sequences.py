"""Faults that show only at one length, at the last positions, or behind a long past: the proof looks there."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest

from bento_kv.contract.manifest import Manifest
from bento_kv.contract.verification import Verification
from bento_kv.proof import effort
from bento_kv.proof.parity import TorchReference
from bento_kv.proof.proof import prove
from bento_kv.proof.report import render
from tests import decoders
from tests.damage import change_graph
from tests.proof.faults import both, compared, largest, shape_of, spoil_logits_if

ROOM = 1024
# What looks at a few hundred positions, or at a few tokens anywhere.
SHORT_SIGHTED = {"prefill-logits", "step0-cache", "decode-logits", "far-positions", "ragged-rows", "greedy-tokens"}


@pytest.fixture(scope="module")
def long_source() -> Path:
    return decoders.source(max_position_embeddings=ROOM)


@pytest.fixture
def long_decoder(long_source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(decoders.exported(long_source), tmp_path / "decoder"))


def _prove(directory: Path, source: Path) -> Verification:
    return prove(directory, lambda manifest: TorchReference(str(source), manifest))


def _failed(record: Verification) -> set[str]:
    return {check.id for layer in (record.export, record.loop) for check in layer.checks if not check.passed}


def _explain(record: Verification, name: str) -> str:
    return next(check.explain for layer in (record.export, record.loop) for check in layer.checks if check.id == name)


def test_a_right_decoder_is_computed_to_its_last_position(long_decoder: Path, long_source: Path) -> None:
    record = _prove(long_decoder, long_source)
    assert record.passed, render(record)
    lengths = _explain(record, "prompt-lengths")
    assert "1-40, 63-65, 127-129, 255-257, 511-513, 1023-1024 tokens" in lengths
    assert f"up to position {ROOM - 1}, the last that there is" in _explain(record, "last-positions")
    assert f"to {ROOM - 1} positions" in _explain(record, "long-past")
    assert f"17 of 17 slots at once, up to the last of {ROOM} positions" in _explain(record, "full-slots-full")


def test_a_fault_at_one_prompt_length_is_found(long_decoder: Path, long_source: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        spoil_logits_if(model, compared(model, shape_of(model, "input_ids", 0), "Equal", 31))

    change_graph(long_decoder, change, manifest={})
    record = _prove(long_decoder, long_source)
    assert "prompt-lengths" in _failed(record)
    assert "a prompt of 31 tokens" in _explain(record, "prompt-lengths")
    assert not _failed(record) & SHORT_SIGHTED


def _spoil_behind_1000(model: onnx.ModelProto) -> None:
    """What stays below a past of a thousand positions does not notice."""
    spoil_logits_if(model, compared(model, largest(model, "seqlens_k"), "Greater", 1000))


def test_a_fault_behind_a_long_past_is_found(long_decoder: Path, long_source: Path) -> None:
    change_graph(long_decoder, _spoil_behind_1000, manifest={})
    failed = _failed(_prove(long_decoder, long_source))
    assert failed >= {"prompt-lengths", "last-positions", "long-past"}
    assert not failed & SHORT_SIGHTED


def test_decoding_that_is_wrong_at_the_last_positions_is_found(long_decoder: Path, long_source: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        decoding = compared(model, shape_of(model, "gather_index", 1), "Equal", 1)
        spoil_logits_if(model, both(model, decoding, compared(model, largest(model, "position_ids"), "Greater", 1020)))

    change_graph(long_decoder, change, manifest={})
    failed = _failed(_prove(long_decoder, long_source))
    assert failed >= {"last-positions"}
    assert not failed & {*SHORT_SIGHTED, "prompt-lengths", "long-past"}


def test_what_is_too_long_to_compute_is_reached_behind_a_given_past(
    long_decoder: Path, long_source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a budget for short prompts only, as of a large model, and a record that says how far it went."""
    monkeypatch.setattr(effort, "LONGEST_PROMPT", 1e9)
    monkeypatch.setattr(effort, "FULL_SLOTS", 1.0)
    healthy = _prove(long_decoder, long_source)
    assert healthy.passed, render(healthy)
    assert "511-513 tokens, of 1024" in _explain(healthy, "prompt-lengths")
    assert f"of {ROOM}" in _explain(healthy, "last-positions")
    assert "3 of 17 slots at once, up to the last of 300 positions" in _explain(healthy, "full-slots-batch")

    change_graph(long_decoder, _spoil_behind_1000, manifest={})
    assert _failed(_prove(long_decoder, long_source)) == {"long-past"}


def test_rotary_that_changes_with_the_length_is_the_same_at_every_length_there_is() -> None:
    """One pass over the longest prompt stands for every shorter one only because the room ends where they change."""
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 64, "factor": 4.0}
    rope |= {"short_factor": [1.5] * 8, "long_factor": [4.0] * 8}
    decoder = decoders.proven(decoders.source(max_position_embeddings=256, rope_parameters=rope))
    assert Manifest.read(decoder).max_length == 64

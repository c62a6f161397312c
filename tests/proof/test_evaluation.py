"""What `eval` says of a decoder: numbers that are right, of the text that it was given."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bento_kv.errors import SourceError
from bento_kv.proof.evaluation import Evaluation, Quality, evaluate, table
from bento_kv.proof.parity import TorchReference
from bento_kv.proof.quality import Divergence
from bento_kv.text.tokenizer import Tokenizer
from tests import decoders
from tests.cli.program import run

TEXT = "The tide turned at noon, and by one o'clock the boats were back. Nobody had seen the whale. " * 12


@pytest.fixture(scope="module")
def reference() -> TorchReference:
    return TorchReference("demo", None)


def test_fewer_bits_are_smaller_and_farther(reference: TorchReference) -> None:
    found = [evaluate(decoders.exported("demo", precision=each), reference) for each in ("fp32", "int8", "int4")]
    bits, decoding = [each.bits for each in found], [each.decode.kl for each in found]
    assert bits == sorted(bits, reverse=True)
    assert decoding == sorted(decoding)
    fp32 = found[0]
    assert fp32.bits == pytest.approx(32, rel=0.2)  # and a table of angles
    for quality in (fp32.prefill, fp32.decode):
        assert quality.kl < 1e-6
        assert quality.agreement == 1.0
        assert quality.perplexity == pytest.approx(quality.reference_perplexity, rel=1e-4)
    assert found[2].decode.kl > 1e-3
    assert found[2].decode.agreement < 1.0


def test_perplexity_is_that_of_the_text(reference: TorchReference, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    directory = decoders.exported("demo", precision="fp32")
    found = evaluate(directory, reference, file)
    ids = Tokenizer(directory).encode(TEXT)
    pieces = [ids[at : at + 160] for at in range(0, len(ids) - 159, 160)]
    assert found.prefill.positions == 80 * len(pieces) > 160
    surprise = []
    for piece in pieces:
        logits = reference.logits(piece).astype(np.float64)
        logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        surprise += [-logs[at, piece[at + 1]] for at in range(80)]
    assert found.prefill.perplexity == pytest.approx(np.exp(np.mean(surprise)), rel=1e-4)


def test_a_text_that_cannot_be_read_or_says_nothing_is_refused(reference: TorchReference, tmp_path: Path) -> None:
    directory = decoders.exported("demo", precision="fp32")
    file = tmp_path / "text.txt"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(SourceError, match=r"text\.txt cannot be read as UTF-8"):
        evaluate(directory, reference, file)
    file.write_text("Hello")
    with pytest.raises(SourceError, match="too few to say anything"):
        evaluate(directory, reference, file)


def test_the_table_has_a_line_for_each() -> None:
    seen = Divergence()
    logits = np.random.default_rng(0).normal(size=(8, 20)).astype(np.float32)
    seen.see(logits, logits, list(range(8)))
    quality = Quality.of(seen)
    lines = table([Evaluation("some/dir", "int4", "int8", 5.25, 12.0, quality, quality)] * 2).splitlines()
    assert len(lines) == 4
    assert lines[2].split() == ["int4/int8", "5.25", "12.0", *["0", "1.0000", "100.0%"] * 2, "some/dir"]


def test_the_command_takes_several_and_another_models_weights_are_refused(tiny_source: Path) -> None:
    targets = [decoders.exported("demo", precision=each) for each in ("fp32", "int4")]
    told = run("eval", *targets, "--json")
    assert told.returncode == 0, told.stderr
    results = json.loads(told.stdout)["results"]
    assert [each["target"] for each in results] == [str(each) for each in targets]
    assert [each["precision"] for each in results] == ["fp32", "int4"]
    refused = run("eval", targets[0], "--reference", tiny_source)
    assert refused.returncode == 1
    assert "other weights than those the decoder was exported from" in refused.stderr
    assert "Missing argument" in run("eval").stderr

"""The quality gate's numbers, where they are known; and the text that it is measured on."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bento_kv import demo
from bento_kv.contract.precision import PRECISIONS, PrecisionTraits, QualityLimits
from bento_kv.contract.quantization import BlockWeights
from bento_kv.contract.remedies import Remedy
from bento_kv.contract.verification import Check
from bento_kv.proof.effort import TEXT_LENGTH
from bento_kv.proof.passages import CONVERSATIONS, PASSAGES
from bento_kv.proof.quality import Divergence, probe_sequences
from bento_kv.proof.weights import WeightErrors
from bento_kv.text.tokenizer import Tokenizer
from tests.quantized import blocks

Floats = NDArray[np.float32]
VOCAB = 50
LOOSE = replace(PRECISIONS["int4"], quality=QualityLimits(kl=1.0, top1=1.0, perplexity=10.0))


def _measured(seen: Divergence, limits: PrecisionTraits = LOOSE) -> dict[str, float | None]:
    return {check.id.removesuffix("-decode"): check.measured for check in seen.checks("decode", limits)}


def _passed(seen: Divergence, limits: PrecisionTraits = LOOSE) -> dict[str, bool]:
    return {check.id.removesuffix("-decode"): check.passed for check in seen.checks("decode", limits)}


def _seen(got: Floats, expected: Floats, following: list[int]) -> Divergence:
    seen = Divergence()
    seen.see(got, expected, following)
    return seen


def _logits(rows: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(0, 3, (rows, VOCAB)).astype(np.float32)


def test_the_same_logits_up_to_a_constant_do_not_diverge() -> None:
    logits = _logits(40)
    measured = _measured(_seen(logits + np.float32(7), logits, list(range(40))))
    assert all(abs(value or 0) < 1e-6 for value in measured.values())


def test_numbers_are_those_of_their_definitions() -> None:
    expected, got = _logits(40), _logits(40, seed=1)
    following = np.random.default_rng(2).integers(0, VOCAB, 39).tolist()
    p, q = (np.exp(x.astype(np.float64)) / np.exp(x.astype(np.float64)).sum(1, keepdims=True) for x in (expected, got))
    seen = _seen(got, expected, following)
    measured = _measured(seen)
    assert measured["quality-kl"] == pytest.approx((p * np.log(p / q)).sum(axis=1).mean())
    rows = np.arange(39)
    perplexities = [np.exp(-np.log(x[rows, following]).mean()) for x in (q, p)]
    assert measured["quality-perplexity"] == pytest.approx(abs(np.log(perplexities[0] / perplexities[1])))
    ranked = np.sort(p, axis=1)
    decided = ranked[:, -1] >= 2 * ranked[:, -2]
    other = p.argmax(axis=1) != q.argmax(axis=1)
    assert 0 < decided.sum() < 40
    assert measured["quality-top1"] == pytest.approx((decided & other).sum() / 100)  # of a hundred at least
    for _ in range(20):
        seen.see(got, expected, following)
    assert _measured(seen)["quality-top1"] == pytest.approx((decided & other).sum() / decided.sum())


def test_a_change_of_mind_between_equals_is_no_loss() -> None:
    expected = np.zeros((200, VOCAB), np.float32)
    expected[:, 3], expected[:, 4] = 5.0, 4.9
    got = expected[:, [0, 1, 2, 4, 3, *range(5, VOCAB)]]
    assert _measured(_seen(got, expected, []))["quality-top1"] == 0.0
    expected[:, 3] = 6.0
    assert _measured(_seen(got, expected, []))["quality-top1"] == 1.0


def test_what_is_no_number_fails_and_what_is_impossible_does_not() -> None:
    expected = _logits(30)
    expected[:, 7] = -np.inf  # a token that the model never says
    assert all(_passed(_seen(expected.copy(), expected, [1] * 30)).values())
    broken = expected.copy()
    broken[3, 5] = np.nan
    assert not _passed(_seen(broken, expected, [1] * 30))["quality-kl"]
    silenced = expected.copy()
    silenced[3, 5] = -np.inf  # a token that the reference may say
    assert not _passed(_seen(silenced, expected, [1] * 30))["quality-kl"]
    assert not any(_passed(Divergence()).values())


def test_too_large_a_divergence_says_how_to_make_it_smaller() -> None:
    expected = _logits(30)
    remedy = Remedy(option="edge_layers", value=2, reason="8 bits")
    near, far = (
        next(iter(_seen(expected + noise, expected, [1] * 30).checks("decode", PRECISIONS["int4"], [remedy])))
        for noise in (0.0, 9.0 * np.random.default_rng(0).standard_normal(expected.shape, np.float32))
    )
    assert near.passed
    assert near.remedies == ()
    assert not far.passed
    assert far.remedies == (remedy,)
    assert Check.model_validate_json(far.model_dump_json()) == far


def test_limits_grow_as_bits_shrink() -> None:
    ordered = [PRECISIONS[precision].quality for precision in ("fp32", "fp16", "int8", "int4")]
    for one, other in pairwise(ordered):
        assert one.kl < other.kl
        assert one.top1 < other.top1
        assert one.perplexity < other.perplexity


def test_probe_text_is_of_every_kind_and_fits() -> None:
    tokenizer = Tokenizer(demo.path())
    sequences = probe_sequences(tokenizer, 1024)
    assert len(sequences) == len(PASSAGES) + len(CONVERSATIONS)
    assert max(map(len, sequences)) == TEXT_LENGTH
    # Prose, a whole chat, code, other languages: among the first four, which any model gets.
    assert tokenizer.decode(sequences[1], skip_special_tokens=False).endswith("1177")
    assert "def moving_average" in tokenizer.decode(sequences[2])
    assert "Der Zug hielt" in tokenizer.decode(sequences[3])
    assert max(map(len, probe_sequences(tokenizer, 32))) == 32


def test_a_model_without_a_chat_template_gets_the_texts(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((demo.path() / name).read_bytes())
    assert len(probe_sequences(Tokenizer(tmp_path), 1024)) == len(PASSAGES)


def _weight(rows: int = 64, columns: int = 96) -> Floats:
    return np.random.default_rng(5).normal(0, 0.1, (rows, columns)).astype(np.float32)


def _errors(floats: Floats, quantized: BlockWeights) -> dict[str, float | None]:
    errors = WeightErrors()
    errors.see("w", floats, quantized)
    return {check.id: check.measured for check in errors.checks()}


def test_errors_of_weights_are_relative_to_them() -> None:
    weight = _weight()
    quantized = blocks(4, 32)(weight)
    floats = quantized.dequantize()
    measured = _errors(weight, quantized)
    assert measured["weights-int4"] == pytest.approx(np.linalg.norm(floats - weight) / np.linalg.norm(weight), rel=1e-4)
    by_block = np.linalg.norm((floats - weight).reshape(-1, 32), axis=1) / np.linalg.norm(
        weight.reshape(-1, 32), axis=1
    )
    assert measured["weight-blocks-int4"] == pytest.approx(by_block.max(), rel=1e-4)


def test_rounding_to_nearest_never_reaches_the_limit_of_a_block() -> None:
    """The worst that there is: one value takes all the range, and all others vanish."""
    weight = np.full((2, 256), 0.0333, np.float32)
    weight[:, 0] = 1.0
    for symmetric in (True, False):
        assert 0.3 < (_errors(weight, blocks(4, 256, symmetric=symmetric)(weight))["weight-blocks-int4"] or 0) < 0.75


def test_something_in_place_of_nothing_is_an_error() -> None:
    weight = _weight()
    quantized = blocks(4, 32)(weight)
    weight[3, :32] = 0
    assert _errors(weight, quantized)["weight-blocks-int4"] is None  # infinite

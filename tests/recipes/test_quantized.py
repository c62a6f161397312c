"""What quantization costs the demo model: answers that it got right before."""

from __future__ import annotations

from pathlib import Path

import pytest

from bento_kv import demo
from recipes.demo.evaluate import BATCH_ROWS, Answerer, evaluate, held_out_cases, open_answerer
from recipes.demo.served import DecoderAnswerer
from tests import decoders

SKILLS = ("recall", "alike", "sums", "copy", "reverse")
CASES = 40


@pytest.fixture(scope="module")
def exported() -> Path:
    return decoders.exported(decoders.DEMO)


def _right(directory: Path) -> list[bool]:
    answerer = DecoderAnswerer(directory, BATCH_ROWS)
    return [outcome.right for outcome in evaluate(answerer, held_out_cases(CASES, SKILLS))]


@pytest.fixture(scope="module")
def right(exported: Path) -> list[bool]:
    return _right(exported)


def test_the_exported_decoder_answers_as_the_model(exported: Path, tmp_path: Path) -> None:
    cases = held_out_cases(4, SKILLS)
    said = [outcome.said for outcome in evaluate(open_answerer(exported, None, tmp_path), cases)]
    assert said == [outcome.said for outcome in evaluate(Answerer(demo.path()), cases)]


@pytest.mark.parametrize(("precision", "points"), [pytest.param("int8", 1, marks=pytest.mark.slow), ("int4", 3)])
def test_accuracy_stays_within_points(precision: str, points: int, right: list[bool]) -> None:
    quantized = _right(decoders.exported(decoders.DEMO, precision=precision))
    assert len(quantized) == len(right) > 200
    assert sum(quantized) >= sum(right) - points / 100 * len(right)

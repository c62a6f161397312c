"""The shipped model: small, and right on what it never saw."""

from collections import Counter

import pytest
from safetensors import safe_open

from bento_kv import demo
from recipes.demo import cases
from recipes.demo.evaluate import Answerer, evaluate, held_out_cases


@pytest.fixture(scope="module")
def answerer() -> Answerer:
    return Answerer(demo.path())


def test_it_is_small() -> None:
    total = 0
    with safe_open(demo.path() / "model.safetensors", framework="numpy") as weights:
        for name in weights.keys():  # noqa: SIM118 - not a dict
            tensor = weights.get_slice(name)
            assert tensor.get_dtype() == "F16"
            rows, *columns = tensor.get_shape()
            total += rows * (columns[0] if columns else 1)
    assert total <= 4_000_000
    assert sum(file.stat().st_size for file in demo.path().iterdir()) <= 8_000_000


def test_held_out_accuracy(answerer: Answerer) -> None:
    skills = ("recall", "copy", "sums")
    outcomes = [each for each in evaluate(answerer, held_out_cases(60, skills)) if each.skill in skills]
    right = Counter(outcome.skill for outcome in outcomes if outcome.right)
    assert all(right[skill] >= 57 for skill in skills), right


@pytest.mark.parametrize(("prompt", "answer"), cases.LITERALS)
def test_literal_prompts(answerer: Answerer, prompt: str, answer: str) -> None:
    ((said, _),) = answerer.answers([[{"role": "user", "content": prompt}]])
    assert said == answer

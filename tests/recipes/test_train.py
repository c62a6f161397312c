"""Training: a resumed run equals an uninterrupted one."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from recipes.demo import recipe
from recipes.demo.train import train
from recipes.demo.workers import PROMPT_WEIGHT, microbatches, pad

TINY = recipe.Shape(hidden=32, layers=1, feed_forward=32, heads=2, kv_heads=1, head_dim=16)
PHASES = (recipe.Phase(2, 48, 0.0, 1e-2, tokens=300), recipe.Phase(1, 64, 1e-2, 0.0, tokens=300))


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", PHASES, TINY, seed=5).state_dict()
    train(tmp_path / "parts", PHASES, TINY, seed=5, steps=1)
    resumed = train(tmp_path / "parts", PHASES, TINY, seed=5, resume=True).state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    shipped = load_file(tmp_path / "parts" / "model" / "model.safetensors")
    assert all(torch.equal(weight, whole[name].half()) for name, weight in shipped.items())


def test_a_checkpoint_of_another_seed_is_refused(tmp_path: Path) -> None:
    train(tmp_path, PHASES, TINY, seed=5, steps=1)
    with pytest.raises(ValueError, match="seed 5, not 6"):
        train(tmp_path, PHASES, TINY, seed=6, resume=True)


def test_phases_follow_each_other() -> None:
    assert recipe.phase_at(PHASES, 1) == (PHASES[0], 1e-2)
    assert recipe.phase_at(PHASES, 2) == (PHASES[1], 0.0)
    with pytest.raises(IndexError):
        recipe.phase_at(PHASES, 3)


def test_padding_weighs_nothing_and_answers_weigh_most() -> None:
    from recipes.demo.text import training_batch

    batch = training_batch(0, 0, PHASES[0])
    parts = microbatches(batch)
    assert sorted(map(id, batch)) == sorted(id(each) for part in parts for each in part)
    for part in parts:
        ids, weights = pad(part)
        for row, conversation in enumerate(part):
            encoded, answered = conversation.encode()
            assert ids[row, : len(encoded)].tolist() == encoded
            assert weights[row, len(encoded) :].sum() == 0
            expected = torch.tensor([1.0 if counts else PROMPT_WEIGHT for counts in answered])
            assert torch.equal(weights[row, : len(encoded)], expected)

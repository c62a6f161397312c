"""The training text: a function of the seed, within its budget, and never what the evaluation asks."""

import random
import re

import pytest

from recipes.demo import cases, hard, recall, recipe, skills, text, words

PHASE = recipe.Phase(1, 400, 0.0, 0.0, crowded=0.3, hard=0.3)


def batches(seed: int, steps: int) -> list[text.Conversation]:
    return [each for step in range(steps) for each in text.training_batch(seed, step, PHASE)]


def test_text_is_a_function_of_seed_and_step() -> None:
    assert batches(3, 2) == batches(3, 2)
    assert batches(3, 2) != batches(4, 2)
    assert text.training_batch(3, 0, PHASE) != text.training_batch(3, 1, PHASE)


def test_conversations_keep_to_their_budget() -> None:
    assert max(len(conversation.encode()[0]) for conversation in batches(0, 10)) <= 400


def test_every_skill_is_trained() -> None:
    trained = {exchange.skill for conversation in batches(0, 20) for exchange in conversation.exchanges}
    assert trained >= set(cases.JUDGED) - {"alike"}


def test_no_held_out_sum_is_trained() -> None:
    rng = random.Random(0)
    for _ in range(20_000):
        a, b = map(int, re.findall(r"\d+", rng.choice((skills.sums, hard.sums))(rng, False).user))
        assert not words.sum_held_out(a, b)


def test_a_tenth_of_the_sums_is_held_out_with_their_mirrors() -> None:
    held = {(a, b) for a in range(100) for b in range(100) if words.sum_held_out(a, b)}
    assert 800 < len(held) < 1200
    assert all((b, a) in held for a, b in held)


@pytest.mark.parametrize("held", [False, True])
def test_words_and_keys_stay_on_their_side(held: bool) -> None:
    rng = random.Random(1)
    assert all(words.held_out(skills.word(rng, held)) == held for _ in range(2000))
    for _ in range(300):
        memory = recall.Memory.draw(rng, held)
        memory.tell_many(rng, 5)
        assert all(words.held_out(key.bare) == held for key in memory.known)


def test_right_answers() -> None:
    rng = random.Random(2)
    for _ in range(2000):
        a, b = map(int, re.findall(r"\d+", (sums := skills.sums(rng, False)).user))
        assert sums.answer == str(a + b)
        assert (copied := skills.copy(rng, False)).answer in copied.user
        assert (turned := skills.reverse(rng, False)).answer[::-1] in turned.user


def test_recall_asks_for_a_code_that_was_told() -> None:
    rng = random.Random(3)
    for _ in range(300):
        told = ""
        for exchange in recall.recall_exchanges(rng, False, 300):
            told += exchange.user
            if exchange.skill == "recall":
                assert exchange.answer in told


def test_cases_fit_the_promised_prompt() -> None:
    for index in range(50):
        conversation = cases.case("recall", index)
        answer = len(conversation.exchanges[-1].answer)
        assert len(conversation.encode()[0]) - answer - 1 <= cases.PROMPT_TOKENS
        assert conversation == cases.case("recall", index)

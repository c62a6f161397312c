from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bento_kv.engine.lookup import MAX_EVIDENCE, PROBE, SIZES, PromptLookup, Speculation

tokens = st.lists(st.integers(0, 3), max_size=60)


def reference(prompt: list[int], appended: list[int]) -> tuple[int, int]:
    """Where the next token would come from and how long the match is, by looking through everything each time."""

    def begin(sequence: list[int]) -> tuple[int, int]:
        for size in SIZES:
            for place in range(len(sequence) - 1, size - 1, -1):
                if sequence[place - size : place] == sequence[-size:]:
                    return place, size
        return 0, 0

    sequence = list(prompt)
    source, matched = begin(sequence)
    for token_id in appended:
        sequence.append(token_id)
        goes_on = matched and sequence[source] == token_id
        source, matched = (source + 1, matched + 1) if goes_on else begin(sequence)
    return source, matched


@given(tokens, tokens)
def test_a_match_begins_at_the_last_occurrence_of_the_longest_n_gram_and_goes_on(
    prompt: list[int], appended: list[int]
) -> None:
    lookup = PromptLookup(prompt)
    for token_id in appended:
        lookup.append(token_id)
    source, matched = reference(prompt, appended)
    assert lookup.matched == matched
    assert lookup.propose(4) == (tuple([*prompt, *appended][source : source + 4]) if matched else ())
    assert len(lookup.propose(4)) <= 4
    assert bool(lookup.propose(4)) == bool(matched)


def test_a_copy_is_followed_past_n_grams_that_are_ambiguous() -> None:
    """The last occurrence of `7 8 9` goes on with 5, but the sequence is in the middle of copying the first."""
    lookup = PromptLookup([1, 2, 3, 7, 8, 9, 4, 4, 7, 8, 9, 5, 0])
    for token_id in (1, 2, 3, 7, 8, 9):
        lookup.append(token_id)
    assert lookup.propose(2) == (4, 4)


def test_what_was_never_seen_proposes_nothing() -> None:
    lookup = PromptLookup(range(100))
    assert (lookup.matched, lookup.propose(8)) == (0, ())
    assert PromptLookup().propose(8) == ()


def check(speculation: Speculation, truth: list[int], room: int = 100) -> list[int]:
    """Let a model that says `truth` be guessed. Returns how many drafts each step had."""
    steps, done = [], 0
    while done < len(truth):
        drafts = speculation.propose(min(room, len(truth) - done - 1))
        accepted = 0
        while accepted < len(drafts) and drafts[accepted] == truth[done + accepted]:
            accepted += 1
        speculation.observe(truth[done : done + accepted + 1], len(drafts))
        done += accepted + 1
        steps.append(len(drafts))
    return steps


def test_drafts_grow_with_the_match() -> None:
    prompt = list(range(100))
    steps = check(Speculation(prompt, most=16), prompt)
    assert steps[:6] == [0, 0, 2, 5, 11, 16]
    assert len(steps) < 20


@pytest.mark.parametrize("most", [1, 3])
def test_never_more_drafts_than_allowed_or_than_there_is_room_for(most: int) -> None:
    prompt = list(range(50))
    assert max(check(Speculation(prompt, most), prompt)) == most
    assert max(check(Speculation(prompt, 10), prompt, room=4)) == 4
    assert set(check(Speculation(prompt, 10), prompt, room=0)) == {0}


def test_a_sequence_that_does_not_copy_is_soon_left_alone() -> None:
    """Few distinct tokens, so that n-grams come back all the time and say nothing of what follows."""
    for seed in range(20):
        rng = random.Random(seed)
        speculation = Speculation([rng.randrange(12) for _ in range(1000)], most=8)
        drafts = check(speculation, [rng.randrange(12) for _ in range(1000)])
        # At a third of a step each, less than 2 % of the steps.
        assert sum(drafts) < 60


def test_the_evidence_asked_for_doubles_and_halves() -> None:
    """A match that always breaks right after the probe; then one that does not."""
    most = 4
    speculation = Speculation([], most)
    asked = []
    for word in range(10):
        prompt = [1000 * word + i for i in range(200)]
        speculation.observe([*prompt, -1], 0)
        for length, token_id in enumerate(prompt):
            if speculation.propose(most):
                asked.append(length)
                speculation.observe([-2 - word], PROBE)
                break
            speculation.observe([token_id], 0)
    assert asked == [2, 4, 8, 16, 32, *[MAX_EVIDENCE] * 5]
    prompt = list(range(-1000, -500))
    speculation.observe([*prompt, -1], 0)
    check(speculation, prompt)
    speculation.observe([*prompt[:2]], 0)
    assert speculation.propose(most)

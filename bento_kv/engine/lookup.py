"""Guessing the next tokens by looking them up in what is there already: the prompt and the output so far.

Answers often repeat their prompt: a quotation, a corrected text, code with a line changed. A guess that is checked costs
little beside a step that is saved, and a check never changes an answer: the tokens are chosen as they would be without.
(LLMA, arXiv 2304.04487, which copies spans of reference texts; Saxena's prompt lookup decoding, 2023, which finds them by
n-grams.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

SIZES = (3, 2)  # of n-grams that begin a match, the longest first
PROBE = 2  # drafts of a first check
MAX_EVIDENCE = 64


class PromptLookup:
    """What followed the last tokens where they stood before.

    A match begins with an n-gram that occurred before, its last occurrence, and goes on as long as what followed there
    follows here, so it is as long as the copy and not as the n-gram. An appended token costs a few dictionary entries.

    Args:
        token_ids: the sequence so far.

    Attributes:
        matched: how many of the last tokens are alike in both places; 0 if there is no match.
    """

    def __init__(self, token_ids: Iterable[int] = ()) -> None:
        self._tokens: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}  # where the token stands that last followed an n-gram
        self._source = 0  # where the token stands that would come next if the match went on
        self.matched = 0
        for token_id in token_ids:
            self._push(token_id)
        self._begin_match()

    def append(self, token_id: int) -> None:
        """Make a token the last of the sequence."""
        goes_on = self.matched and self._tokens[self._source] == token_id
        self._push(token_id)
        if goes_on:
            self._source += 1
            self.matched += 1
        else:
            self._begin_match()

    def propose(self, count: int) -> tuple[int, ...]:
        """The tokens that would come next if the match went on: up to `count`, none if there is no match."""
        return tuple(self._tokens[self._source : self._source + count]) if self.matched else ()

    def _push(self, token_id: int) -> None:
        place = len(self._tokens)
        for size in SIZES:
            if place >= size:
                self._next[tuple(self._tokens[-size:])] = place
        self._tokens.append(token_id)

    def _begin_match(self) -> None:
        for size in SIZES:
            source = self._next.get(tuple(self._tokens[-size:]))
            if source is not None:
                self._source, self.matched = source, size
                return
        self.matched = 0


class Speculation:
    """What one request has checked in a step: nothing, until it is worth it.

    On a CPU a draft costs about a third of a step, so that guessing wildly would be slower than not guessing. Matches are
    followed without a check, which is free, and a check asks for evidence: a match of some length. A check that did not pay,
    with fewer than a third of its drafts right, doubles that length, and one that paid halves it. So a sequence that does
    not copy is soon left alone, and one that does has more drafts a step the longer the match is. All this depends on the
    sequence alone, never on the load.

    Args:
        token_ids: the sequence so far.
        most: drafts a step at most.
    """

    def __init__(self, token_ids: Iterable[int], most: int) -> None:
        self._lookup = PromptLookup(token_ids)
        self._most = most
        self._evidence = min(SIZES)

    def observe(self, chosen: Sequence[int], drafts: int) -> None:
        """The step checked so many drafts, and these tokens were chosen: the drafts that were right, and one more."""
        for token_id in chosen:
            self._lookup.append(token_id)
        if drafts:
            paid = 3 * (len(chosen) - 1) >= drafts
            self._evidence = max(min(SIZES), self._evidence // 2) if paid else min(2 * self._evidence, MAX_EVIDENCE)

    def propose(self, room: int) -> tuple[int, ...]:
        """Drafts to be checked in the next step, `room` at most."""
        surplus = self._lookup.matched - self._evidence
        return self._lookup.propose(min(surplus + PROBE, self._most, room)) if surplus >= 0 else ()

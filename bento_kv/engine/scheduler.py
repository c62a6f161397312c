"""Who computes what in the next step: counts and slot ids, no arrays.

A sequence has `tokens` and how many of them are `computed`; what is pending is computed next. A prompt, a chunk of one, a
token just chosen are all the same: pending tokens.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bento_kv.plan import StepPlan, StepRow


@dataclass(slots=True, eq=False)
class SequenceState:
    """The progress of one request.

    Attributes:
        id: of the request.
        tokens: prompt and output so far.
        prompt_length: how many of `tokens` are the prompt.
        slot: row of the KV cache; None before admission and after the end.
        computed: how many of `tokens` have their keys and values in the slot.
        drafts: guesses of the next tokens, to be checked when the pending token is computed.
    """

    id: str
    tokens: list[int]
    prompt_length: int
    slot: int | None = None
    computed: int = 0
    drafts: tuple[int, ...] = ()

    @property
    def pending(self) -> int:
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_length


class Scheduler:
    """First come, first served, in two kinds of steps that take turns while there is work for both.

    A *prefill* step computes the sequences that have more than one pending token, a *decode* step those that have one. The
    two never share a step: attention of a single query takes another kernel than that of several, and a row's bits must
    not depend on its neighbours. A prompt of one token is a decode row of an empty slot.

    The lowest free slot is taken first, because a contiguous range of slots is the cheapest for the decoder.

    Args:
        slots: rows of the KV cache.
        prefill_tokens: pending prompt tokens that may share a prefill step; a longer prompt has a step of its own.
    """

    def __init__(self, *, slots: int, prefill_tokens: int) -> None:
        self.slots = slots
        self.waiting: deque[SequenceState] = deque()
        self.running: dict[int, SequenceState] = {}  # by slot
        self._prefill_tokens = prefill_tokens
        self._free = list(range(slots))  # a heap
        self._prefilled_last = False

    @property
    def kv_tokens(self) -> int:
        """Positions of the KV cache in use."""
        return sum(sequence.computed for sequence in self.running.values())

    def add(self, sequence: SequenceState) -> None:
        """Let a sequence wait for a slot."""
        self.waiting.append(sequence)

    def schedule(self) -> StepPlan | None:
        """The plan of the next step, rows by slot; None if there is nothing to compute."""
        self._admit()
        prefill = [sequence for sequence in self.running.values() if sequence.pending > 1]
        decode = [sequence for sequence in self.running.values() if sequence.pending == 1]
        prefilling = bool(prefill) and not (decode and self._prefilled_last)
        chosen = prefill if prefilling else decode
        if not chosen:
            return None
        self._prefilled_last = prefilling
        return StepPlan(tuple(sorted((_row(sequence) for sequence in chosen), key=lambda row: row.slot)))

    def update(self, plan: StepPlan, chosen: Iterable[Sequence[int]]) -> int:
        """Count a plan as computed and append to each row's sequence the tokens chosen for it.

        Returns how many of the tokens computed were prompt.
        """
        prompt_tokens = 0
        for row, tokens in zip(plan.rows, chosen, strict=True):
            sequence = self.running[row.slot]
            accepted = max(0, len(tokens) - 1)  # of the drafts; the others' keys and values are written over
            sequence.computed = row.start + len(row.tokens) - row.drafts + accepted
            sequence.tokens.extend(tokens)
            prompt_tokens += max(0, min(sequence.computed, sequence.prompt_length) - row.start)
        return prompt_tokens

    def finish(self, sequence: SequenceState) -> None:
        """Forget a sequence, waiting or running, and free its slot."""
        if sequence.slot is None:
            self.waiting.remove(sequence)
            return
        del self.running[sequence.slot]
        heapq.heappush(self._free, sequence.slot)
        sequence.slot = None

    def check_books(self) -> None:
        """Raise AssertionError unless free + used == total and every sequence is where its slot says."""
        assert sorted([*self._free, *self.running]) == list(range(self.slots)), (self._free, sorted(self.running))
        assert all(sequence.slot == slot for slot, sequence in self.running.items())
        assert all(sequence.slot is None and sequence.computed == 0 for sequence in self.waiting)
        assert all(0 <= sequence.computed < len(sequence.tokens) for sequence in self.running.values())

    def _admit(self) -> None:
        """Give slots to those who wait, as many as there are free slots and as fit in one prefill step, at least one."""
        prefilling = sum(sequence.pending for sequence in self.running.values() if sequence.pending > 1)
        while self.waiting and self._free:
            head = self.waiting[0]
            tokens = head.pending if head.pending > 1 else 0
            if tokens and prefilling and prefilling + tokens > self._prefill_tokens:
                return
            prefilling += tokens
            head.slot = heapq.heappop(self._free)
            self.running[head.slot] = self.waiting.popleft()


def _row(sequence: SequenceState) -> StepRow:
    assert sequence.slot is not None  # it is running
    pending, drafts = sequence.tokens[sequence.computed :], sequence.drafts
    return StepRow(sequence.slot, (*pending, *drafts), sequence.computed, logits=1 + len(drafts), drafts=len(drafts))

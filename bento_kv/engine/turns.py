"""Whose turn it is: clients share the slots evenly, as far as they want them.

What a client holds of a server is slots, so that is what is shared out: the next slot goes to who has the fewest. This is
max-min fairness by progressive filling, as in "Dominant Resource Fairness" (Ghodsi et al., NSDI 2011) with one resource. It
needs no account of what was used before, as "Fairness in Serving Large Language Models" (arXiv 2401.00588) keeps one, and
is deterministic.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence

from bento_kv.engine.sequence import SequenceState


def held(running: Iterable[SequenceState]) -> Counter[str | None]:
    """Slots by client."""
    return Counter(sequence.client for sequence in running)


def first_in_turn(sequences: Sequence[SequenceState], slots: Mapping[str | None, int]) -> SequenceState:
    """Whose turn it is.

    The first by rank says how urgent one has to be. Of all who are at least that urgent, those whose clients have the fewest
    slots come first, and among these the first by rank.

    Args:
        sequences: at least one, running or waiting.
        slots: that each client holds. One that waits counts as if it had the slot that it waits for, so that it is compared
            with those that run as it will be.
    """
    level = min(sequences, key=lambda sequence: sequence.rank).priority
    urgent = (sequence for sequence in sequences if sequence.priority <= level)
    return min(urgent, key=lambda one: (slots[one.client] + (one.slot is None), one.rank))


def gives_way(running: Sequence[SequenceState], head: SequenceState) -> SequenceState | None:
    """Who of those that hold all slots leaves one to `head`, whose turn it is; None if nobody has to.

    It is the last by rank of a client that has at least two slots more than the head's. So it has no fewer than that one
    afterwards, and no two clients ever take a slot from each other in turns. It decodes, since its prompt would have to
    be waited for again, and is not more urgent.
    """
    slots = held(running)
    most = max(slots.values())
    if most < slots[head.client] + 2:
        return None
    last = [
        one
        for one in running
        if slots[one.client] == most and one.computed > one.prompt_length and one.priority >= head.priority
    ]
    return max(last, key=lambda one: one.rank, default=None)


def in_turn(waiting: Iterable[SequenceState], running: Iterable[SequenceState]) -> Iterator[SequenceState]:
    """Those who wait, in the order in which they get slots.

    Args:
        waiting: by rank.
        running: who holds slots.

    Yields:
        Each once. Who has a slot when the next one is asked for counts as running.
    """
    slots = held(running)
    lines: dict[tuple[str | None, int], deque[SequenceState]] = {}
    for sequence in waiting:
        lines.setdefault((sequence.client, sequence.priority), deque()).append(sequence)
    while lines:
        head = first_in_turn([line[0] for line in lines.values()], slots)
        line = lines[head.client, head.priority]
        line.popleft()
        if not line:
            del lines[head.client, head.priority]
        yield head
        slots[head.client] += head.slot is not None

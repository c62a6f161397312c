"""The progress of one request, in counts and slot ids: what the scheduler keeps of it."""

from __future__ import annotations

from dataclasses import dataclass

from bento_kv.contract.decoder import SavedCache


@dataclass(slots=True, eq=False)
class SequenceState:
    """The progress of one request.

    Attributes:
        id: of the request.
        tokens: prompt and output so far.
        prompt_length: how many of `tokens` are the prompt.
        positions: of the KV cache that it may use: the prompt and the longest answer.
        priority: lower is more urgent.
        salt: whose cached prefixes it may take over.
        client: whose it is; clients take turns.
        drafts: guesses of what follows `tokens`, to be checked in the next step; whoever chooses tokens sets them anew.
        spare: a guess to be checked if the next step has room that costs nothing; set anew likewise.
        slot: row of the KV cache; None before admission and after the end.
        computed: how many of `tokens` have their keys and values in the slot, or in `paused`.
        hit: how many of them were found in the prefix cache.
        rank: its place in the queue; the lowest is served first.
        paused: a copy of its keys and values, while it waits for a slot again.
        leader: who is computing most of its prompt, and is waited for until it has computed `awaited` tokens.
    """

    id: str
    tokens: list[int]
    prompt_length: int
    positions: int
    priority: int = 0
    salt: str | None = None
    client: str | None = None
    drafts: tuple[int, ...] = ()
    spare: tuple[int, ...] = ()
    slot: int | None = None
    computed: int = 0
    hit: int = 0
    rank: tuple[int, int] = (0, 0)
    paused: SavedCache | None = None
    leader: SequenceState | None = None
    awaited: int = 0

    @property
    def pending(self) -> int:
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_length

    def has_yet_to_compute(self, length: int) -> bool:
        """Whether so many of the first tokens will be computed, but are not yet."""
        return self.slot is not None and self.computed < length

"""Who has which slot, what lies in those that nobody has, and how much memory all of it may take.

Keys and values depend on the tokens up to theirs and on nothing else. So a slot that a request leaves keeps them until
the slot or the memory is needed, and a request whose prompt begins with the same tokens starts behind them. Here are ids
and counts; the decoder moves the arrays.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from bento_kv.contract.decoder import Decoder, SavedCache
from bento_kv.contract.plan import Exactness
from bento_kv.engine.radix import RadixTree

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Entry:
    """Tokens whose keys and values can be read.

    Attributes:
        tokens: from position 0.
        salt: who may read them: requests with the same one.
        slot: where they lie; None if they are `saved`.
        saved: a copy beyond the slots.
    """

    tokens: tuple[int, ...]
    salt: str | None
    slot: int | None
    saved: SavedCache | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """A slot in use: how many positions are reserved for it, and whose it is."""

    positions: int
    salt: str | None


class PrefixCache:
    """Slots, entries and one budget of positions: reservations of those who run first, then entries, the least recently
    used ones given up where they do not fit.

    A hit is exact, because it is limited to what the request would have computed in the same way. In mode `batch` steps of
    one query take another kernel than prefill: only prefilled tokens may be handed in, and a hit leaves at least two tokens
    of a prompt, so that the rest is a prefill. In mode `full` all ways give the same bits, and one token is left for the
    logits.

    Args:
        decoder: moves keys and values between slots and beyond.
        slots: rows of the KV cache.
        kv_tokens: positions that reservations and entries may take together.
        exact: see above.
        reuse: False keeps nothing.
        saved_tokens: positions that copies beyond the slots may take; whatever `kv_tokens` leaves if None.
        longest: positions that a request may take; all of a slot if None.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        slots: int,
        kv_tokens: int,
        exact: Exactness,
        reuse: bool = True,
        saved_tokens: int | None = None,
        longest: int | None = None,
    ) -> None:
        self.slots = slots
        self.kv_tokens = kv_tokens
        self.reserved = 0  # positions, by all leases
        self.paused = 0  # positions of copies for who is to have a slot again
        self.cached = 0  # positions of entries that nobody runs on, in slots and beyond
        self._saved = 0  # of these, beyond
        self._longest = decoder.max_length if longest is None else longest
        self._decoder = decoder
        self._spare = 2 if exact == "batch" else 1
        self.reuse = reuse
        self._saved_limit = kv_tokens if saved_tokens is None else saved_tokens
        self._leases: dict[int, Lease] = {}
        self._trees: dict[str | None, RadixTree[Entry]] = {}  # by salt; none is empty
        self._in_slot: dict[int, Entry] = {}
        self._idle: dict[Entry, None] = {}  # least recently used first

    # -- slots --------------------------------------------------------------------------------------------------------

    def has_room(self, positions: int) -> bool:
        """Whether there is a free slot, and memory for so many positions."""
        return len(self._leases) < self.slots and self.fits(positions)

    def fits(self, positions: int) -> bool:
        """Whether there is memory for so many positions more."""
        return self.reserved + self.paused + positions <= self.kv_tokens

    def take(self, prompt: Sequence[int], salt: str | None, positions: int) -> tuple[int, int]:
        """Give a slot to a request that there is room for, and lay what is known of its prompt into it.

        Args:
            prompt: its tokens.
            salt: see `Entry`.
            positions: that it may use, prompt and answer together.

        Returns:
            The slot, and how many tokens of the prompt have their keys and values in it.
        """
        assert self.has_room(positions)
        entry, shared = self._find(prompt, salt)
        hit = self.usable(shared, len(prompt))
        source = entry if hit else None
        slot = self._choose(source, shared)
        self._leases[slot] = Lease(positions, salt)
        self.reserved += positions
        hit = self._fill(slot, source, shared, hit)
        if hit:
            self._add(Entry(tuple(prompt[:hit]), salt, slot))
        self._shrink()
        return slot, hit

    def publish(self, slot: int, tokens: Sequence[int]) -> None:
        """From now on the first tokens of a slot in use can be read; they are those of its prompt."""
        if self.reuse and tokens:
            if before := self._in_slot.get(slot):
                self._remove(before)
            self._add(Entry(tuple(tokens), self._leases[slot].salt, slot))

    def give_back(self, slot: int, tokens: Sequence[int]) -> None:
        """Take a slot back, and keep these tokens, which are its first ones, unless they are to be found elsewhere."""
        lease = self._leases.pop(slot)
        self.reserved -= lease.positions
        if before := self._in_slot.get(slot):
            self._remove(before)
        if not self.reuse or not tokens:
            self._decoder.release(slot, 0)
            return
        self._decoder.release(slot, len(tokens))
        entry = Entry(tuple(tokens), lease.salt, slot)
        self._add(entry)
        self._rest(entry)
        if self._trees[entry.salt].covered(entry):
            self._give_up(entry)

    def pause(self, slot: int, length: int) -> SavedCache | None:
        """Take a slot back, and keep a copy of its first positions; None, and nothing else, if there is no memory for it.

        Copies leave room for the longest request: else one could wait for memory that only copies have, which wait behind it.
        """
        if self.paused + length + self._longest > self.kv_tokens:
            return None
        try:
            copy = self._decoder.save(slot, length)
        except MemoryError:
            logger.warning("no memory to set %d positions aside", length)
            return None
        self.give_back(slot, ())
        self.paused += length
        return copy

    def resume(self, copy: SavedCache, length: int, salt: str | None, positions: int) -> tuple[int, int]:
        """Give a slot to a request that there is room for and that was paused, and lay its copy there.

        Returns:
            The slot, and how many positions lie there: none if the copy cannot be moved, and all has to be computed anew.
        """
        slot = self._choose(None, 0)
        self._leases[slot] = Lease(positions, salt)
        self.reserved += positions
        self._fill(slot, None, 0, 0)
        self.drop(length)
        self._shrink()
        try:
            self._decoder.restore(slot, copy, length)
        except Exception:
            logger.exception("keys and values that were set aside could not be moved; they are computed anew")
            return slot, 0
        return slot, length

    def drop(self, length: int) -> None:
        """A copy of so many positions is needed no more."""
        self.paused -= length

    # -- what can be read ---------------------------------------------------------------------------------------------

    def lookup(self, prompt: Sequence[int], salt: str | None) -> int:
        """How many tokens of a prompt would not have to be computed."""
        return self.usable(self._find(prompt, salt)[1], len(prompt))

    def usable(self, shared: int, prompt_length: int) -> int:
        """How many of `shared` first tokens a prompt can take over, if it is to go on exactly as without them."""
        return max(0, min(shared, prompt_length - self._spare)) if self.reuse else 0

    def check_books(self) -> None:
        """Raise AssertionError unless every position is counted once and every entry is where it says."""
        entries = [entry for tree in self._trees.values() for entry in tree]
        assert all(len(tree) for tree in self._trees.values())
        assert self.reserved == sum(lease.positions for lease in self._leases.values())
        assert self.cached == sum(len(entry.tokens) for entry in self._idle)
        assert self._saved == sum(len(entry.tokens) for entry in self._idle if entry.saved is not None)
        assert self.reserved + self.paused + self.cached <= self.kv_tokens, (self.reserved, self.paused, self.cached)
        assert self._saved <= self._saved_limit
        assert all((entry.slot is None) == (entry.saved is not None) for entry in entries)
        assert {entry.slot: entry for entry in entries if entry.slot is not None} == self._in_slot
        assert set(self._idle) == {entry for entry in entries if entry.slot not in self._leases}
        assert self._leases.keys() <= set(range(self.slots))

    # -- how ----------------------------------------------------------------------------------------------------------

    def _find(self, prompt: Sequence[int], salt: str | None) -> tuple[Entry | None, int]:
        """An entry with the longest beginning of a prompt, and how long that is. One that a free slot holds is the best."""
        tree = self._trees.get(salt)
        if tree is None:
            return None, 0
        shared, entries = tree.find(tuple(prompt))
        return min(entries, key=lambda entry: (entry.slot is None, entry.slot in self._leases)), shared

    def _choose(self, source: Entry | None, shared: int) -> int:
        """A free slot: the source's own if nothing else is lost there, the lowest empty one, the least recently used one."""
        if source in self._idle and source.slot is not None and shared == len(source.tokens):
            return source.slot
        # A contiguous range of slots is the cheapest for the decoder, so the lowest is taken.
        empty = (slot for slot in range(self.slots) if slot not in self._leases and slot not in self._in_slot)
        oldest = (entry.slot for entry in self._idle if entry.slot is not None)
        slot = next(empty, None)
        return next(oldest) if slot is None else slot

    def _fill(self, slot: int, source: Entry | None, shared: int, hit: int) -> int:
        """Clear a slot that has just been taken, and lay `hit` tokens of the source into it. Returns how many lie there."""
        before = self._in_slot.get(slot)
        if before is not None:
            if before is source and shared == len(before.tokens):
                self._give_up(before, clear=False)
            else:
                self._displace(before)
            if len(before.tokens) > self._leases[slot].positions:
                self._decoder.release(slot, self._leases[slot].positions)
        if source is None or before is source:
            return hit
        if source in self._idle:
            self._idle[source] = self._idle.pop(source)
        try:
            if source.saved is not None:
                self._decoder.restore(slot, source.saved, hit)
            elif source.slot is not None:
                self._decoder.copy(source.slot, slot, hit)
        except Exception:
            logger.exception("cached keys and values could not be moved; the prompt is computed")
            return 0
        return hit

    def _displace(self, entry: Entry) -> None:
        """Take an entry out of its slot: into a copy beyond the slots, if there is room and nobody else has the tokens."""
        slot, length = entry.slot, len(entry.tokens)
        assert slot is not None
        room = min(self._saved_limit, self.kv_tokens - self.reserved - self.paused)
        saved = None
        if length <= room and not self._trees[entry.salt].covered(entry):
            try:
                saved = self._decoder.save(slot, length)
            except MemoryError:
                logger.warning("no memory to keep %d cached positions", length)
        self._give_up(entry, clear=False)
        if saved is not None:
            kept = Entry(entry.tokens, entry.salt, None, saved)
            self._add(kept)
            self._rest(kept)

    def _shrink(self) -> None:
        """Give up what the limits do not allow, the least recently used first."""
        while self._saved > self._saved_limit:
            self._give_up(next(entry for entry in self._idle if entry.saved is not None))
        while self.reserved + self.paused + self.cached > self.kv_tokens:
            self._give_up(next(iter(self._idle)))

    def _add(self, entry: Entry) -> None:
        """Let an entry be found, instead of idle ones that it has all the tokens of."""
        tree = self._trees.setdefault(entry.salt, RadixTree())
        tree.add(entry.tokens, entry)
        if entry.slot is not None:
            self._in_slot[entry.slot] = entry
        for other in [other for other in tree.prefixes(entry) if other in self._idle]:
            self._give_up(other)

    def _rest(self, entry: Entry) -> None:
        """Count an entry that nobody runs on."""
        self._idle[entry] = None
        self.cached += len(entry.tokens)
        self._saved += len(entry.tokens) if entry.saved is not None else 0

    def _give_up(self, entry: Entry, *, clear: bool = True) -> None:
        """Forget an idle entry, and give its slot's memory back unless the slot is about to be written."""
        self._remove(entry)
        del self._idle[entry]
        self.cached -= len(entry.tokens)
        self._saved -= len(entry.tokens) if entry.saved is not None else 0
        if clear and entry.slot is not None:
            self._decoder.release(entry.slot, 0)

    def _remove(self, entry: Entry) -> None:
        """Let an entry not be found any more."""
        tree = self._trees[entry.salt]
        tree.remove(entry)
        if not len(tree):
            del self._trees[entry.salt]
        if entry.slot is not None:
            del self._in_slot[entry.slot]

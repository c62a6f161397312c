"""Who computes what in the next step: counts and slot ids, no arrays.

A sequence has `tokens` and how many of them are `computed`; what is pending is computed next. A prompt, a chunk of one, a
token just chosen are all the same: pending tokens.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Sequence
from operator import attrgetter

from bento_kv.contract.decoder import Decoder
from bento_kv.contract.plan import Exactness, StepPlan, StepRow
from bento_kv.engine.config import EngineConfig
from bento_kv.engine.prefix_cache import PrefixCache
from bento_kv.engine.radix import common_prefix
from bento_kv.engine.sequence import SequenceState
from bento_kv.engine.turns import first_in_turn, gives_way, held, in_turn


class Scheduler:
    """Plans steps, each within a budget of tokens.

    A *prefill* computes prompts, in chunks of at least two tokens; a *decode* row computes the one token chosen last, and
    drafts behind it. In mode `batch` the two never share a step and take turns, since attention of a single query takes
    another kernel than that of several, and a row's bits must not depend on its neighbours; a prompt of one token is a
    decode row of an empty slot. In mode `full` they share steps.

    **The bound on the time between two tokens of a request**: one decode step and at most one prefill step (in mode `full`
    one step of both) of at most `prefill_chunk` prompt tokens, however many and however long the prompts that wait. A decode
    step has every decoding row, and at most `max(slots, prefill_chunk)` tokens. Only where nobody decodes a prefill step has up
    to `prefill_tokens`. (Where prompts cannot be cut, the bound is one prompt.)

    **Order**: a client's requests are served first come, first served, and a level of `priority` is worth `priority_places`
    places in the queue. So a request is overtaken by at most the next `priority_places` x (difference of priorities) of its
    client's to come. Between clients, the next slot goes to who holds the fewest (`in_turn`): **who waits and holds none gets
    a slot in the next step of prefill**, if there is memory and another client has two that decode: its last is paused until
    there is a slot again. Otherwise it gets the next that becomes free or, if others have none either, one in their order;
    nobody's many requests stand before another's first. Nothing starves: the first in the queue waits for no more than its own client's running requests.
    Whose turn it is waits for its slot and its memory, and nobody passes it there.

    The tokens of a prefill go to the first in turn, but for what shorter prompts behind it need, up to a half; so a long
    prompt does not hold up short ones, and they do not make it take more than twice as long.

    Args:
        cache: slots and memory.
        prefill_tokens, prefill_chunk: see above; at least 3, so that a chunk of two can be cut and no single token is left.
        exact: the mode.
        chunked: False computes every prompt in one go, whatever its length, for decoders whose bits depend on the chunks.
        priority_places: see above.
        spare_drafts: a row that decodes alone has its `spare` guess checked.
    """

    def __init__(
        self,
        cache: PrefixCache,
        *,
        prefill_tokens: int,
        prefill_chunk: int,
        exact: Exactness,
        chunked: bool = True,
        priority_places: int = 32,
        spare_drafts: bool = False,
    ) -> None:
        self.slots = cache.slots
        self.cache = cache
        self.spare_drafts = spare_drafts
        self.waiting: list[SequenceState] = []  # by rank
        self.running: dict[int, SequenceState] = {}  # by slot
        self._prefill_tokens = prefill_tokens
        self._prefill_chunk = min(prefill_chunk, prefill_tokens)
        self._exact = exact
        self._chunked = chunked
        self._priority_places = priority_places
        # Not what the others leave: the bits of a row may depend on how many tokens it has.
        self._max_drafts = max(0, self._prefill_chunk // self.slots - 1)
        self._arrivals = 0
        self._prefilled_last = False

    @property
    def kv_tokens(self) -> int:
        """Positions of the KV cache that running sequences have written."""
        return sum(sequence.computed for sequence in self.running.values())

    def add(self, sequence: SequenceState) -> None:
        """Let a sequence wait for a slot."""
        sequence.rank = (self._arrivals + sequence.priority * self._priority_places, self._arrivals)
        self._arrivals += 1
        insort(self.waiting, sequence, key=attrgetter("rank"))

    def schedule(self) -> StepPlan | None:
        """The plan of the next step, rows by slot; None if there is nothing to compute."""
        someone_decodes = any(sequence.pending == 1 for sequence in self.running.values())
        rows: list[StepRow] = []
        if not (self._prefilled_last and someone_decodes) or self._exact == "full":
            budget = self._prefill_chunk if someone_decodes else self._prefill_tokens
            self._admit(budget)
            rows = self._prefill_rows(budget)
        self._prefilled_last = bool(rows)
        if not rows or self._exact == "full":
            decoding = [sequence for sequence in self.running.values() if sequence.pending == 1]
            alone = self.spare_drafts and not rows and len(decoding) == 1
            rows += [self._decode_row(sequence, spare=alone) for sequence in decoding]
        return StepPlan(tuple(sorted(rows, key=attrgetter("slot")))) if rows else None

    def update(self, plan: StepPlan, chosen: Iterable[Sequence[int]]) -> int:
        """Count a plan as computed and append to each row's sequence the tokens chosen for it: none if no logits were
        wanted, else the drafts that were right and one more.

        Returns how many prompt tokens are ready by it, computed or found in the cache.
        """
        prompt_tokens = 0
        for row, tokens in zip(plan.rows, chosen, strict=True):
            sequence = self.running[row.slot]
            sequence.computed = row.start + len(row.tokens) - row.drafts + max(0, len(tokens) - 1)
            sequence.tokens.extend(tokens)
            if row.start < sequence.prompt_length:
                ready = min(sequence.computed, sequence.prompt_length)
                prompt_tokens += ready - (0 if row.start == sequence.hit else row.start)
                self.cache.publish(row.slot, self._reusable(sequence))
        return prompt_tokens

    def finish(self, sequence: SequenceState, *, keep: bool = True) -> None:
        """Forget a sequence, waiting or running, and free its slot; `keep` leaves what it computed to be found."""
        if sequence.slot is None:
            self.waiting.remove(sequence)
            if sequence.paused is not None:
                sequence.paused = None
                self.cache.drop(sequence.computed)
            return
        del self.running[sequence.slot]
        self.cache.give_back(sequence.slot, self._reusable(sequence) if keep else ())
        sequence.slot = None

    def check_books(self) -> None:
        """Raise AssertionError unless free + used == total and every sequence is where its slot says."""
        self.cache.check_books()
        assert self.cache.reserved == sum(sequence.positions for sequence in self.running.values())
        assert all(sequence.slot == slot for slot, sequence in self.running.items())
        assert all(sequence.slot is None for sequence in self.waiting)
        assert all((sequence.paused is not None) == (sequence.computed > 0) for sequence in self.waiting)
        assert all(sequence.paused is None for sequence in self.running.values())
        assert self.cache.paused == sum(sequence.computed for sequence in self.waiting)
        assert all(0 <= sequence.computed < len(sequence.tokens) for sequence in self.running.values())
        assert all(len(sequence.tokens) <= sequence.positions for sequence in self.running.values())
        assert all(sequence.leader is None for sequence in self.running.values())

    def _admit(self, budget: int) -> None:
        """Give slots to those who wait, in turn, as far as there are slots, memory, and tokens in this step.

        Who would compute nothing in this step, or waits for others to compute most of its prompt, gets no slot yet, since it
        may find more of its prompt later, and is passed by.
        """
        if len(self.running) == self.slots:
            self._pause_one(budget)
        if len(self.running) == self.slots:
            return
        for head in in_turn(self.waiting, self.running.values()):
            if not self._has_room(head):
                return
            if self._may_begin(head, budget):
                self.waiting.remove(head)
                self._take_slot(head)

    def _has_room(self, head: SequenceState) -> bool:
        """Whether there is a slot and memory for one that waits; its copy, if it has one, is given up for it."""
        return self.cache.has_room(head.positions - (0 if head.paused is None else head.computed))

    def _may_begin(self, head: SequenceState, budget: int) -> bool:
        """Whether one that waits would compute something that nobody else is about to."""
        return head.paused is not None or (self._has_tokens(head, budget) and not self._is_being_computed(head))

    def _take_slot(self, head: SequenceState) -> None:
        if head.paused is not None:
            head.slot, head.computed = self.cache.resume(head.paused, head.computed, head.salt, head.positions)
            head.paused = None
            self.cache.publish(head.slot, self._reusable(head))
        else:
            head.slot, head.hit = self.cache.take(head.tokens, head.salt, head.positions)
            head.computed = head.hit
            head.leader = None  # or each would keep the one before it
        self.running[head.slot] = head

    def _pause_one(self, budget: int) -> None:
        """Where all slots are taken, free one for whose turn it is, if somebody gives way.

        Who does is set aside with a copy of its keys and values, and goes on with the same bits when it is its turn.
        """
        head = next(in_turn(self.waiting, self.running.values()), None)
        if head is None or not self._may_begin(head, budget):
            return
        last = gives_way(list(self.running.values()), head)
        own = 0 if head.paused is None else head.computed
        if last is not None and self.cache.fits(head.positions - own - last.positions + last.computed):
            last.paused = self.cache.pause(_slot(last), last.computed)
            if last.paused is not None:
                del self.running[_slot(last)]
                last.slot = None
                insort(self.waiting, last, key=attrgetter("rank"))

    def _has_tokens(self, head: SequenceState, budget: int) -> bool:
        """Whether a prefill within the budget would compute something of a waiting sequence."""
        prompts = self._prompts()
        if not prompts or first_in_turn([prompts[0], head], held(self.running.values())) is head:
            return True
        first, *others = prompts
        taken = self._share(first, budget) if head.pending < first.pending else first.pending
        taken += sum(other.pending for other in others if other.pending < head.pending)
        return taken + (min(2, head.pending) if self._chunked else head.pending) <= budget

    def _is_being_computed(self, head: SequenceState) -> bool:
        """Whether another sequence is about to compute most of what the prefix cache does not have of a prompt."""
        if head.leader is not None and head.leader.has_yet_to_compute(head.awaited):
            return True
        hit = self.cache.lookup(head.tokens, head.salt)
        for other in self.running.values():
            if other.salt == head.salt and other.has_yet_to_compute(other.prompt_length):
                shared = common_prefix(head.tokens, other.tokens[: other.prompt_length])
                coming = self.cache.usable(shared, head.prompt_length) - hit
                if 2 * coming > head.prompt_length - hit and other.has_yet_to_compute(hit + coming):
                    head.leader, head.awaited = other, hit + coming
                    return True
        return False

    def _prompts(self) -> list[SequenceState]:
        """Those whose prompts are computed in steps of prefill: the first in turn, then the others, the shortest first."""
        prompts = [sequence for sequence in self.running.values() if sequence.pending > 1]
        first = first_in_turn(prompts, held(self.running.values())) if len(prompts) > 1 else None
        return sorted(prompts, key=lambda sequence: (sequence is not first, sequence.pending, sequence.rank))

    def _share(self, first: SequenceState, budget: int) -> int:
        """What the first in turn takes of a budget in any case, however many shorter ones there are: half of it."""
        return min(first.pending, max(3, budget // 2)) if self._chunked else first.pending

    def _prefill_rows(self, budget: int) -> list[StepRow]:
        """Chunks of the prompts that are not computed yet, within the budget."""
        rows: list[StepRow] = []
        prompts = self._prompts()
        for sequence in prompts:
            limit = budget
            if not rows:
                wanted = sum(other.pending for other in prompts if other.pending < sequence.pending)
                limit = max(self._share(sequence, budget), budget - wanted)
            if n := self._chunk(sequence.pending, limit):
                budget -= n
                start, end = sequence.computed, sequence.computed + n
                tokens = tuple(sequence.tokens[start:end])
                rows.append(StepRow(_slot(sequence), tokens, start, logits=int(end == len(sequence.tokens))))
        return rows

    def _chunk(self, pending: int, limit: int) -> int:
        """How many of so many tokens are computed now: at least two, and never all but one; or none."""
        if pending <= limit:
            return pending
        n = limit - (pending == limit + 1)
        return n if n >= 2 and self._chunked else 0

    def _decode_row(self, sequence: SequenceState, *, spare: bool) -> StepRow:
        """The last token, and as many drafts as could still become part of the answer; or the spare guess."""
        room = max(0, sequence.positions - len(sequence.tokens) - 1)
        drafts = sequence.drafts[: min(self._max_drafts, room)]
        if spare and not drafts:
            drafts = sequence.spare[:room]
        tokens = (sequence.tokens[-1], *drafts)
        return StepRow(_slot(sequence), tokens, sequence.computed, logits=len(tokens), drafts=len(drafts))

    def _reusable(self, sequence: SequenceState) -> Sequence[int]:
        """The tokens whose keys and values a prefill would have computed to the same bits."""
        if self._exact == "full":
            return sequence.tokens[: sequence.computed]
        if sequence.prompt_length == 1:
            return ()  # it was a decode row
        return sequence.tokens[: min(sequence.computed, sequence.prompt_length)]


def _slot(sequence: SequenceState) -> int:
    assert sequence.slot is not None  # it is running
    return sequence.slot


def scheduler_for(decoder: Decoder, config: EngineConfig, *, slots: int, kv_tokens: int, max_length: int) -> Scheduler:
    """The scheduler of an engine.

    Args:
        decoder: its `chunk_exact` says whether prompts may be cut and prefixes be reused, `tokens_in_pairs` and
            `draft_exact` whether a row that decodes alone has a guess checked.
        config: budgets and modes.
        slots: rows of the KV cache.
        kv_tokens: positions of the KV cache that there is memory for.
        max_length: positions that a request may take.
    """
    cache = PrefixCache(
        decoder,
        slots=slots,
        kv_tokens=kv_tokens,
        exact=config.exact,
        # Where the bits depend on the chunks, a prompt behind a cached prefix would not be what it is alone.
        reuse=config.prefix_cache and decoder.chunk_exact,
        saved_tokens=config.prefix_cache_tokens,
        longest=max_length,
    )
    return Scheduler(
        cache,
        prefill_tokens=config.prefill_tokens,
        prefill_chunk=config.prefill_chunk,
        exact=config.exact,
        chunked=decoder.chunk_exact,
        priority_places=config.priority_places,
        # Who decodes alone depends on the load, so that it must change no bit; with one slot everybody does.
        spare_drafts=config.spare_guess and decoder.tokens_in_pairs and (decoder.draft_exact or slots == 1),
    )

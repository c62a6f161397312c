"""Generation loops as people write them, right and wrong: records of what each is and what has to be said of it.

Each drives a decoder and prints its step trace. It prints what it believes: `past_length` is its own count, or the length
of what it feeds, as in a program.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bento_kv.doctor.records import Finding
from bento_kv.runtime.graph import CachedGraph, cache_length
from tests.mutants import right_loops, wrong_loops
from tests.mutants.printing import PAD, Fields, Make, cut


@dataclass(frozen=True)
class Loop:
    """One loop and what has to be said of it.

    Attributes:
        ids: of the findings, with all fields; empty for a right loop.
        first: the first wrong step; None where it depends on the decoder's numbers.
        required_ids: those of a fault that lengths and ids do not show: with the required fields only it takes the
            decoder's numbers, and the step is the first one whose token differs.
        needs: what the decoder must take: `mask`, `positions`.
        only: the loop makes sense with these fields only.
        pad_token_id: what its rows are padded with.
        steps: how many it runs at least.
        right: the loop that it would be without its fault.
    """

    name: str
    make: Make
    ids: tuple[str, ...] = ()
    first: int | None = None
    required_ids: tuple[str, ...] | None = None
    needs: tuple[str, ...] = ()
    only: tuple[Fields, ...] = ("required", "all")
    pad_token_id: int | None = None
    steps: int = 8
    right: Make = right_loops.greedy

    def hidden(self, graph: CachedGraph, prompt: Sequence[int], fields: Fields) -> bool:
        """Whether the fault changed nothing that is printed, so that nobody can see it in the trace."""
        lines = self.make(graph, prompt, self.steps, fields)
        return bool(self.ids) and lines == self.right(graph, prompt, len(lines), fields)

    def expected(self, fields: Fields) -> tuple[tuple[str, ...], int | None]:
        """Finding ids and first wrong step."""
        if fields == "all" or self.required_ids is None:
            return self.ids, self.first
        return self.required_ids, None

    def is_judged(self, findings: Sequence[Finding], first: int | None, fields: Fields) -> bool:
        """Whether this is what has to be said.

        Faults that only numbers show may look like others without the fields that tell them apart (a past that is
        masked is a past that is not fed); then one is found and names the others.
        """
        ids, step = self.expected(fields)
        if fields == "required" and self.required_ids is not None and len(findings) == 1:
            return ids[0] == findings[0].id or f"({ids[0]})" in findings[0].explain
        return tuple(finding.id for finding in findings) == ids and step in (None, first)


STEP0, NOT_FED, STALE = "step0-cache-not-extracted", "past-not-fed", "past-stale"
WHOLE, POSITION, MASK = "input-ids-not-truncated", "position-not-advanced", "mask-too-short"
SWAPPED, DIVERGE = "layers-swapped", "tokens-diverge"

HEALTHY = (
    Loop("greedy", right_loops.greedy),
    Loop("prompt in chunks of 3", right_loops.chunked(3)),
    Loop("prompt in chunks of 4", right_loops.chunked(4)),
    Loop("prompt token by token", right_loops.chunked(1)),
    Loop("speculative, with rollback", right_loops.speculative(roll_back=True)),
    Loop("batch of two", right_loops.batch),
    Loop(
        "batch, padded on the left",
        right_loops.left_padded(positions_count_padding=False),
        needs=("mask", "positions"),
        pad_token_id=PAD,
    ),
    Loop("batch, one row ends early", right_loops.ended_row),
    Loop("sampled", right_loops.sampled, only=("all",)),
    Loop("prompt of one token", right_loops.one_token),
    Loop("40 steps", right_loops.long_run, steps=40),
    Loop("last token of the prompt again", right_loops.last_again),
    Loop("computed again once", right_loops.preempted),
)
FAULTY = (
    Loop("no cache, whole sequence", wrong_loops.no_cache, (STEP0, WHOLE), 0),
    Loop("step 0 skipped, whole sequence at step 1", wrong_loops.step0_skipped(whole=True), (STEP0,), 0),
    Loop("step 0 skipped, one token at step 1", wrong_loops.step0_skipped(whole=False), (STEP0,), 0),
    Loop("past never fed", wrong_loops.past_from(wrong_loops.empty), (NOT_FED,), 1),
    Loop("past dropped from step 3", wrong_loops.past_from(wrong_loops.drop_from(3)), (NOT_FED,), 3),
    Loop("past lost from step 3, computed again", wrong_loops.lost_and_redone, (NOT_FED,), 3),
    Loop("past fed, whole sequence too", wrong_loops.not_truncated(None), (WHOLE,), 1),
    Loop("past fed, last two tokens", wrong_loops.not_truncated(2), (WHOLE,), 1),
    Loop("past of step 0 at every step", wrong_loops.past_from(lambda _, presents: presents[0]), (STALE,), 2),
    Loop("past one step late", wrong_loops.past_from(wrong_loops.late), (STALE,), 2),
    Loop(
        "past cut by one",
        wrong_loops.past_from(lambda _, presents: cut(presents[-1], cache_length(presents[-1]) - 1)),
        (STALE,),
        1,
    ),
    Loop("past joined with itself once", wrong_loops.past_from(wrong_loops.double_once), (STALE,), 2),
    Loop("capacity for a length", wrong_loops.capacity_printed, (STALE,), 0),
    Loop(
        "past of step 0, lengths counted",
        wrong_loops.past_from(lambda _, presents: presents[0], counted=True),
        (STALE,),
        2,
        (STALE,),
    ),
    Loop(
        "past one step late, lengths counted",
        wrong_loops.past_from(wrong_loops.late, counted=True),
        (STALE,),
        2,
        (STALE,),
    ),
    Loop(
        "empty past, lengths counted", wrong_loops.past_from(wrong_loops.empty, counted=True), (NOT_FED,), 1, (NOT_FED,)
    ),
    Loop(
        "rejected drafts kept",
        right_loops.speculative(roll_back=False),
        (STALE,),
        only=("all",),  # without the token chosen, drafts that were kept may be any tokens
        right=right_loops.speculative(roll_back=True),
    ),
    Loop(
        "positions start again",
        wrong_loops.position(lambda past, prompt: 0),
        (POSITION,),
        1,
        (POSITION,),
        needs=("positions",),
    ),
    Loop(
        "positions stand still",
        wrong_loops.position(lambda past, prompt: prompt),
        (POSITION,),
        2,
        (POSITION,),
        needs=("positions",),
    ),
    Loop(
        "positions one behind",
        wrong_loops.position(lambda past, prompt: past - 1),
        (POSITION,),
        1,
        (POSITION,),
        needs=("positions",),
    ),
    Loop(
        "positions one ahead",
        wrong_loops.position(lambda past, prompt: past + 1),
        (POSITION,),
        1,
        (POSITION,),
        needs=("positions",),
    ),
    Loop(
        "positions count the padding",
        right_loops.left_padded(positions_count_padding=True),
        (POSITION,),
        1,
        (POSITION,),
        needs=("mask", "positions"),
        pad_token_id=PAD,
        right=right_loops.left_padded(positions_count_padding=False),
    ),
    Loop(
        "mask of the new token",
        wrong_loops.mask(wrong_loops.new_only, lambda past, prompt: 1),
        (MASK,),
        1,
        (MASK,),
        needs=("mask",),
    ),
    Loop(
        "mask of the prompt",
        wrong_loops.mask(wrong_loops.prompt_only, lambda past, prompt: prompt),
        (MASK,),
        1,
        (MASK,),
        needs=("mask",),
    ),
    Loop(
        "past masked, mask long enough",
        wrong_loops.mask(wrong_loops.new_only, lambda past, prompt: past + 1),
        (MASK,),
        1,
        (MASK,),
        needs=("mask",),
    ),
    Loop("layers rotated", wrong_loops.shuffled(lambda cache: cache[-1:] + cache[:-1]), (SWAPPED,), 1, (SWAPPED,)),
    Loop("keys for values", wrong_loops.shuffled(lambda cache: [(v, k) for k, v in cache]), (SWAPPED,), 1, (SWAPPED,)),
    Loop("all keys, then all values", wrong_loops.shuffled(wrong_loops.keys_first), (SWAPPED,), 1, (SWAPPED,)),
    Loop(
        "rows of the cache exchanged",
        wrong_loops.shuffled(lambda cache: [(k[::-1], v[::-1]) for k, v in cache], rows=2),
        (STALE,),
        1,
        (STALE,),
        right=right_loops.batch,
    ),
    Loop(
        "last token of the prompt fed for the first answer",
        wrong_loops.wrong_token(wrong_loops.prompt_again),
        (DIVERGE,),
        1,
    ),
    Loop("tokens one step late", wrong_loops.wrong_token(wrong_loops.one_late), (DIVERGE,), None, (DIVERGE,)),
    Loop("logits of the first position", wrong_loops.first_logits, (DIVERGE,), 0),
)
LOOPS = HEALTHY + FAULTY

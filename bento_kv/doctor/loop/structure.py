"""The loop's faults that lengths and token ids show by themselves: the first step that cannot be right, and its cause.

What follows from it is not blamed again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from bento_kv.doctor.faults import FAULTS, LoopFaultId
from bento_kv.doctor.loop.trace import Trace
from bento_kv.doctor.loop.walk import RIGHT, Kind, Walked, walk
from bento_kv.doctor.records import Finding, sentence


@dataclass(slots=True)
class Structure:
    """What the walk found.

    Attributes:
        findings: with their steps.
        placing: all of them speak of where tokens stand, which the numbers of a trace may show to be right all the same;
            not of work that is done twice, nor of numbers.
    """

    walked: list[Walked]
    findings: list[tuple[int, Finding]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    placing: bool = True

    def add(self, step: int, id: LoopFaultId, explain: str, fix: str = "", *, placing: bool = False) -> None:
        self.placing &= placing
        fix = sentence(fix or FAULTS[id].remedy)
        told = Finding(id=id, where=f"step {step}", explain=sentence(explain), fix=fix)
        self.findings.append((step, told))


def judge_structure(trace: Trace) -> Structure:
    """The root cause of the first step whose lengths or tokens cannot be right, and its second fault if it has one."""
    structure = Structure(walk(trace))
    walked = structure.walked
    first = next((w.step.step for w in walked if w.kind not in RIGHT and not _is_isolated(w, walked, structure)), None)
    if first is not None:
        _CAUSES[walked[first].kind](first, structure)
        structure.placing = walked[first].kind in (Kind.BEYOND, Kind.STALE, Kind.DROPPED)
    return structure


def _is_isolated(this: Walked, walked: list[Walked], structure: Structure) -> bool:
    """Whether the loop dropped its cache on purpose, once, and computed everything again."""
    number = this.step.step
    if this.kind is not Kind.RECOMPUTE or number < 2 or number + 1 == len(walked):
        return False
    alone = sum(w.kind is Kind.RECOMPUTE for w in walked) == 1 and walked[number + 1].kind is Kind.APPEND
    if alone:
        structure.notes.append(
            f"step {number} computes the whole sequence again with an empty past: right if the loop gave its cache up "
            "on purpose there, a lost cache if not"
        )
    return alone


def _recompute(first: int, structure: Structure) -> None:
    walked, step = structure.walked, structure.walked[first].step
    following = walked[first + 1] if first + 1 < len(walked) else None
    prompt = walked[0].step.width
    if first > 1:
        structure.add(
            first,
            "past-not-fed",
            f"step {first} feeds an empty past and all {step.width} tokens: the cache of step {first - 1} got lost, and "
            "its work is done again",
        )
        return
    continues = following is not None and following.kind is not Kind.APPEND
    # A `present_length` may be what the graph returned rather than what the loop kept, so it decides nothing here.
    kept = continues and walked[0].step.present_length == prompt
    structure.add(
        0,
        "step0-cache-not-extracted",
        f"step 0 computed {prompt} positions, and step 1 feeds an empty past and all {step.width} tokens: what step 0 "
        + ("cached was not kept for it" if kept else "cached was never taken")
        + ("" if following is None or continues else "; from step 2 on the cache is fed as it should be"),
        "feed the present outputs of step 0, which are taken already, as the past of step 1" if kept else "",
    )
    if continues and following is not None and following.kind in (Kind.RECOMPUTE, Kind.WHOLE):
        at = 1 if following.kind is Kind.RECOMPUTE else 2
        fed = ", ".join(str(w.step.width) for w in walked[1:5])
        structure.add(
            at,
            "input-ids-not-truncated",
            f"after step 0 the whole sequence is fed at every step ({fed} tokens) instead of the new token; this has to "
            "change together with the cache, or every token gets into it twice",
        )
    if following is None:
        structure.notes.append("the trace ends after step 1; two steps more would show whether the cache is used later")


def _dropped(first: int, structure: Structure) -> None:
    walked = structure.walked
    zero, step = walked[0].step, walked[first].step
    lengths = [w.step.past_length for w in walked[first + 1 :]]
    if first > 1:
        structure.add(
            first,
            "past-not-fed",
            f"step {first} feeds an empty past; {walked[first].expected_past} positions had been computed, and the "
            "steps before it had fed theirs",
        )
        return
    later = any(w.step.present_length for w in walked[1:])
    not_taken = zero.present_length == 0 or (zero.present_length is None and later)
    if lengths and lengths[0] == zero.width and zero.width != step.width:
        structure.add(
            1,
            "past-stale",
            f"step 1 feeds an empty past and step 2 feeds the {zero.width} positions of step 0: the cache comes one "
            "step late",
        )
    elif not_taken or (lengths and lengths[0] == step.width):
        why = "step 0 took no cache" if not_taken else "the cache of step 1 is fed to step 2, that of step 0 never was"
        structure.add(
            0,
            "step0-cache-not-extracted",
            f"step 0 computed {zero.width} positions, and step 1 feeds {step.width} token(s) with an empty past: {why}; "
            "the model does not see the prompt",
        )
    else:
        structure.add(
            1,
            "past-not-fed",
            f"step 1 feeds {step.width} token(s) with an empty past where {zero.width} positions had been computed"
            + (", and so do the steps after it" if lengths and not any(lengths) else "")
            + ": the model sees no token before",
        )


def _whole(first: int, structure: Structure) -> None:
    walked = structure.walked[first]
    again = walked.step.width - walked.expected_tokens
    structure.add(
        first,
        "input-ids-not-truncated",
        f"step {first} feeds a past of {walked.step.past_length} positions and {walked.step.width} tokens, {again} of "
        "which the past holds already: the model reads them twice",
    )


def _forgot(first: int, structure: Structure) -> bool:
    """Whether the step before returned what it was fed itself alone, as a graph does that runs without its past."""
    before, past = structure.walked[first - 1].step, structure.walked[first].step.past_length
    told = before.present_length == before.width
    return (
        first > 1
        and past == before.width < before.past_length + before.width
        and (told or (before.present_length is None and past != structure.walked[0].step.width))
    )


def _stale(first: int, structure: Structure) -> None:
    walked, this = structure.walked, structure.walked[first]
    past, expected = this.step.past_length, this.expected_past
    if _forgot(first, structure):
        before = walked[first - 1].step
        structure.add(
            before.step,
            "past-not-fed",
            f"step {before.step} feeds a past of {before.past_length} positions, and what comes out of it, the past of step "
            f"{first}, has {past}: only what step {before.step} was fed itself. The graph ran as if there were no past, as "
            "a merged decoder does while `use_cache_branch` is false",
            "set `use_cache_branch` to true from step 1 on; a graph without that input is to be run with the past that is "
            "counted, not with an empty one",
        )
        return
    rest = [w.step.past_length for w in walked[first:]]
    missing = expected - past
    if len(rest) > 1 and len(set(rest)) == 1:
        source = "step 0" if past == walked[0].step.width else f"step {first - 2}"
        how = f"every step from here on feeds the cache of {source}, and nothing computed later gets into it"
    elif past == walked[first - 1].step.past_length:
        how = f"the past is the one that step {first - 1} had been fed already, not the one that it returned"
    else:
        how = f"{missing} position(s) of it were left out"
    structure.add(
        first,
        "past-stale",
        f"step {first} feeds a past of {past} positions where {expected} had been computed: {how}; the model does not "
        f"see the last {missing} token(s)",
    )


def _beyond(first: int, structure: Structure) -> None:
    walked, step = structure.walked, structure.walked[first].step
    lengths = [w.step.past_length for w in walked]
    expected = walked[first].expected_past
    before = walked[first - 1].step if first else step
    if len(lengths) > 2 and len(set(lengths[max(first, 1) :])) == 1 and len(lengths) - first > 1:
        how = (
            f"the length stays at {step.past_length}, which looks like the capacity of a padded buffer: feed, or print, "
            "the used part of it"
        )
    elif first == 0 and step.past_length == step.width:
        how = "it is the length after the step: print the length of the cache that goes in"
    elif first == 0:
        how = "a run begins with an empty past: is it the cache of a run before, or a made-up past?"
    elif step.past_length == 2 * before.past_length + before.width:
        how = f"step {first - 1} returned a cache with its past in it, and the loop put it behind that past once more"
    elif step.past_length == expected + 1:
        how = "one more than was computed: is a token counted before it is fed?"
    else:
        how = "is something put behind it twice, or is it the cache of another run?"
    fix = (
        "begin with an empty past, [rows, heads, 0, head size]; where a tensor of length 0 cannot be made, feed one of "
        "zeros, mask it at every step, and count positions without it"
    )
    structure.add(
        first,
        "past-stale",
        f"step {first} feeds a past of {step.past_length} positions where {expected} had been computed: {how}",
        fix if first == 0 else "",
    )


_CAUSES: dict[Kind, Callable[[int, Structure], None]] = {
    Kind.RECOMPUTE: _recompute,
    Kind.DROPPED: _dropped,
    Kind.WHOLE: _whole,
    Kind.STALE: _stale,
    Kind.BEYOND: _beyond,
}

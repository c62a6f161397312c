"""The loop by equality, slot by slot: filled to the last position, used again, taken back and continued."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bento_kv.contract.checks import Worst, at_most, difference, of_any_chunks
from bento_kv.contract.decoder import Decoder
from bento_kv.contract.plan import StepPlan, StepRow
from bento_kv.contract.verification import Check

_WIDEST = 128
_COMPARED = 3


def check_reuse(decoder: Decoder, ids: Sequence[int]) -> list[Check]:
    """Slots that held something else give the same bits as one that never held anything.

    Args:
        decoder: whose last slot was not used yet, if that is to mean anything; the first two are used besides.
        ids: as many as the sequences may be long.
    """
    return [_check_again(decoder, ids), _check_rewound(decoder, ids)]


def _check_again(decoder: Decoder, ids: Sequence[int]) -> Check:
    """Freed by a longer sequence and given to a shorter one, and the other way round."""
    other = list(reversed(ids))
    half = ids[: max(2, len(ids) // 2)]
    worst = Worst()
    fresh = _run(decoder, decoder.slots - 1, half)
    first = _run(decoder, 1, other)
    worst.see(difference(_run(decoder, 1, half), fresh), f"{len(half)} tokens after {len(ids)} others")
    worst.see(difference(_run(decoder, 1, other), first), f"{len(ids)} tokens after {len(half)} others")
    text = "largest difference of a sequence in a slot that others used before to the same in a fresh slot"
    return at_most(f"slot-reuse-{decoder.exact}", worst.error, 0.0, worst.describe(text))


def _check_rewound(decoder: Decoder, ids: Sequence[int]) -> Check:
    """Taken back to a shorter length and continued otherwise, as when a prefix is kept and the rest is not."""
    room = len(ids)
    measure, limit = of_any_chunks(decoder)
    worst = Worst()
    kept_lengths = sorted({kept for kept in (2, room // 8, room // 3) if 2 <= kept <= room - 2})
    for kept in kept_lengths:
        rest = list(reversed(ids))[: min(room - kept, 12)]
        results = []
        for slot, before in ((0, ids[: min(room, 2 * kept + 8)]), (1, ids[:kept])):
            decoder.step(StepPlan([StepRow(slot, before, 0)]))
            # The rewound slot held other tokens at these positions; the other one ends where they begin.
            results.append(_run(decoder, slot, rest, start=kept))
        worst.see(measure(*results), f"{len(rest)} tokens behind {kept} that were kept")
    text = (
        f"largest difference of sequences rewound to {', '.join(map(str, kept_lengths)) or 'no'} tokens and continued "
        "to the same without a detour"
    )
    return at_most(f"slot-rewind-{decoder.exact}", worst.error, limit, worst.describe(text))


def _run(decoder: Decoder, slot: int, ids: Sequence[int], *, start: int = 0) -> NDArray[np.float32]:
    """A chunk of all but the last three tokens, then those one by one: logits `[4 or fewer, vocab_size]`."""
    chunk = max(1, len(ids) - 3)
    logits = [decoder.step(StepPlan([StepRow(slot, ids[:chunk], start)]))[0].copy()]
    for at in range(chunk, len(ids)):
        logits.append(decoder.step(StepPlan([StepRow(slot, ids[at : at + 1], start + at)]))[0].copy())
    return np.stack(logits)


def check_full(decoder: Decoder, filled: int) -> Check:
    """Slots filled to the last position in shared steps, some of which are then computed again, alone.

    Prompts are chunked at random and end at different lengths, one of them at the last position; the others are decoded
    up to it. Every slot holds a sequence of its own, so that one that reaches into another shows.

    Args:
        decoder: all of its slots may be used.
        filled: how many are; the first and the last are among them.
    """
    rng = np.random.default_rng(3)
    room = decoder.max_length
    slots = sorted(set(np.linspace(0, decoder.slots - 1, filled, dtype=int).tolist()))
    sequences = {slot: rng.integers(0, decoder.vocab_size, room).tolist() for slot in slots}
    # Prompts of at least two tokens, or rows of one and of several would share a step.
    prompts = {slot: max(min(2, room), room - index % 4) for index, slot in enumerate(slots)}
    last = _fill(decoder, sequences, prompts, rng)
    # What the slots hold is read when all have been written.
    compared = sorted({*slots[: _COMPARED - 1], slots[-1]})
    held = {slot: decoder.cache.read(slot, room) for slot in compared}
    measure, limit = of_any_chunks(decoder)
    worst = Worst()
    for slot in compared:
        alone = _fill(decoder, {slot: sequences[slot]}, prompts, None)
        worst.see(measure(last[slot], alone[slot]), f"logits at the last position of slot {slot}")
        for layer, (one, two) in enumerate(zip(held[slot], decoder.cache.read(slot, room), strict=True)):
            for side, got, wanted in zip(("keys", "values"), one, two, strict=True):
                worst.see(measure(got, wanted), f"{side} of layer {layer} in slot {slot}")
    text = (
        f"largest difference of sequences that fill {len(slots)} of {decoder.slots} slots at once, up to the last of "
        f"{room} positions, to the same alone"
    )
    return at_most(f"full-slots-{decoder.exact}", worst.error, limit, worst.describe(text))


def _fill(
    decoder: Decoder,
    sequences: dict[int, list[int]],
    prompts: dict[int, int],
    rng: np.random.Generator | None,
) -> dict[int, NDArray[np.float32]]:
    """Compute whole sequences, all slots in the same steps: the last logits by slot.

    Prompts go in chunks of random sizes, at once without a generator; the tokens behind them one by one.
    """
    done = dict.fromkeys(sequences, 0)
    last: dict[int, NDArray[np.float32]] = {}
    while any(done[slot] < len(ids) for slot, ids in sequences.items()):
        prefilling = [slot for slot in sequences if done[slot] < prompts[slot]]
        rows = []
        for slot in prefilling or [slot for slot, ids in sequences.items() if done[slot] < len(ids)]:
            size = _chunk(prompts[slot] - done[slot], rng) if prefilling else 1
            rows.append(StepRow(slot, sequences[slot][done[slot] : done[slot] + size], done[slot]))
        for row, logits in zip(rows, decoder.step(StepPlan(rows)), strict=True):
            done[row.slot] += len(row.tokens)
            last[row.slot] = logits.copy()
    return last


def _chunk(left: int, rng: np.random.Generator | None) -> int:
    """Tokens of the next chunk of a prompt: never one, and never so many that one would be left."""
    size = left if rng is None else min(left, int(rng.integers(2, _WIDEST + 1)))
    return left if left - size == 1 else size

"""How much of a proof is computed: all of it for a small model, and what two minutes allow for a larger one.

No kind of check is ever left out. What a large model gets less of is length: the longest prompt that is compared with
torch, the lengths besides it, the slots that are filled to their last position, the ways to split a sequence. It is
decided by arithmetic operations and not by the clock, so that a proof is the same on every run, and every check says
in its record what it did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bento_kv.contract.manifest import Manifest

SEQUENCE = 300  # positions; longer than four blocks of the attention operator of most models, and one
SHORT = 40  # every prompt length up to this one
TEXT_LENGTH = 160  # tokens of a sequence of probe text, half of them decoded
TEXTS_TOGETHER = 6  # sequences of it that are decoded in the same steps
WALKS = 12
LEAST_WALKS = 3
LEAST_TEXTS = 4

# Operations; two cores of 2026 do about 1.5e11 a second.
LONGEST_PROMPT = 1.5e12
OTHER_PROMPTS = 2.0e12
FULL_SLOTS = 0.6e12
SPLITS = 1.2e12
TEXTS = 2.5e12

# A step reads all weights, which takes as long as computing this many tokens; and any step costs some.
_STEP_TOKENS = 20
_STEP_OPERATIONS = 1e8


@dataclass(frozen=True, slots=True)
class Effort:
    """What is computed for one decoder.

    Attributes:
        lengths: of the prompts that are compared with torch, ascending, each computed in one step.
        slot_length: positions of a slot where sequences are compared with themselves.
        full_slots: how many slots are filled to the last position.
        walks: ways to split a sequence into steps.
        texts: sequences of probe text that the quality is measured on, if there are as many.
    """

    lengths: tuple[int, ...]
    slot_length: int
    full_slots: int
    walks: int
    texts: int

    @property
    def longest(self) -> int:
        return self.lengths[-1]

    @classmethod
    def plan(cls, manifest: Manifest, operations: Callable[[int], float], slots: int) -> Effort:
        """Spend the operations that there are.

        Args:
            manifest: of the decoder.
            operations: floating-point operations of one pass over so many tokens.
            slots: of the decoder.
        """
        room = manifest.max_length

        def step(tokens: int) -> float:
            return operations(tokens) + operations(_STEP_TOKENS) + _STEP_OPERATIONS

        short = min(room, SEQUENCE)
        # Every filled slot, and three of them once more alone.
        choices = [(room, slots), (short, slots), (short, min(slots, 3))]
        fitting = [(length, n) for length, n in choices if (n + 3) * step(length) <= FULL_SLOTS]
        slot_length, full_slots = (fitting or choices)[0 if fitting else -1]
        walk = step(short) + 60 * step(1)
        text = 2 * step(TEXT_LENGTH) + TEXT_LENGTH / 2 * step(TEXTS_TOGETHER) / TEXTS_TOGETHER
        return cls(
            lengths=_lengths(_candidates(manifest), step),
            slot_length=slot_length,
            full_slots=full_slots,
            walks=max(LEAST_WALKS, min(WALKS, int(SPLITS / walk))),
            texts=max(LEAST_TEXTS, int(TEXTS / text)),
        )


def _candidates(manifest: Manifest) -> list[int]:
    """Prompt lengths at which something may change: all short ones, and the neighbourhood of every edge."""
    room = manifest.max_length
    edges = (
        {2**n for n in range(room.bit_length() + 1)} | set(block_edges(g.head_dim for g in manifest.layers)) | {room}
    )
    around = {edge + offset for edge in edges for offset in (-1, 0, 1)}
    return sorted(n for n in {*range(1, SHORT + 1), *around} if 1 <= n <= room)


def block_edges(head_dims: Iterable[int]) -> list[int]:
    """Where blocks of the attention operator end: it cuts queries by the size of a head, or twice that."""
    return sorted({blocks * size for size in head_dims for blocks in (1, 2, 4)})


def _lengths(candidates: list[int], step: Callable[[int], float]) -> tuple[int, ...]:
    """The longest that is affordable, torch computing it too, and of the others as many as are, the shortest first."""
    longest = max((n for n in candidates if 2 * step(n) <= LONGEST_PROMPT), default=candidates[0])
    chosen: list[int] = []
    left = OTHER_PROMPTS
    for n in candidates:
        left -= step(n)
        if n >= longest or left < 0:
            break
        chosen.append(n)
    return (*chosen, longest)

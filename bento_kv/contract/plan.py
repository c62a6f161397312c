"""The plan of one step: the nouns that the scheduler and the decoder share.

A leaf: it imports nothing, so that the engine needs no runtime and the runtime no engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

# How far equality goes. `batch`: a request's logits do not depend on its neighbours, bit for bit. `full`: also, any
# split of a sequence into steps gives the bits of one pass over the whole.
Exactness = Literal["batch", "full"]


@dataclass(frozen=True, slots=True)
class StepRow:
    """What one slot does in a step: `tokens` are appended at positions `[start, start + len(tokens))`.

    Prefill is n tokens from position 0, decoding one token, a chunk or a speculative check k tokens, from any position;
    the step does not tell them apart. Rewinding is a smaller `start`.

    Attributes:
        slot: row of the KV cache.
        tokens: token ids to compute, at least one.
        start: number of positions of the slot that hold valid keys and values before the step.
        logits: of how many trailing tokens the logits are wanted: 0 for a chunk that is not the last, 1 to sample the
            next token, `drafts + 1` for a check of drafts, `len(tokens)` for log-probabilities of a prompt.
        drafts: how many trailing tokens are guesses of what will be generated, to be checked in this step.
    """

    slot: int
    tokens: Sequence[int]
    start: int
    logits: int = 1
    drafts: int = 0

    @property
    def decodes(self) -> bool:
        """Whether the row continues by one token (and guesses behind it), rather than computing a prompt."""
        return len(self.tokens) == 1 + self.drafts


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Rows of one step, in any order, each slot at most once.

    The decoder answers with logits `[sum(row.logits for row in rows), vocab_size]`, in the order of the rows.
    """

    rows: Sequence[StepRow]

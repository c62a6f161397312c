"""Token sequences to test a decoder with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bento_kv.contract.manifest import Manifest
from bento_kv.proof.effort import SEQUENCE

BEYOND_WINDOW = 64
GREEDY_STEPS = 16


class Probes:
    """Random, because a random text leaves no layer idle; the same on every run.

    Args:
        manifest: of the decoder.
        window: tokens that its longest sliding window spans; 0 if it has none.
        longest: tokens of the longest prompt that is compared with torch.

    Attributes:
        sequence: at least as long as the longest prompt.
        length: of its beginning that is compared with itself.
        rows: of a step of several prompts.
        prompts: to decode greedily behind, `greedy_steps` each.
        beyond_window: a sequence that is longer than the window; empty where the others are.
    """

    def __init__(self, manifest: Manifest, window: int, longest: int) -> None:
        rng = np.random.default_rng(20)
        room = manifest.max_length
        self.length = min(SEQUENCE, room)
        self.sequence: Sequence[int] = rng.integers(0, manifest.vocab_size, max(self.length, longest)).tolist()
        lengths = [min(n, room) for n in (37, 11, 2, 23)]
        self.rows: list[Sequence[int]] = [rng.integers(0, manifest.vocab_size, n).tolist() for n in lengths]
        lengths = [max(1, min(n, room - GREEDY_STEPS)) for n in (1, 5, 24)]
        self.prompts: list[Sequence[int]] = [rng.integers(0, manifest.vocab_size, n).tolist() for n in lengths]
        self.greedy_steps = min(GREEDY_STEPS, room - 1)
        beyond = min(window + BEYOND_WINDOW, room) if window >= self.length - BEYOND_WINDOW else 0
        self.beyond_window: Sequence[int] = rng.integers(0, manifest.vocab_size, beyond).tolist()

    @property
    def short(self) -> Sequence[int]:
        """The sequence as far as it is compared with itself."""
        return self.sequence[: self.length]

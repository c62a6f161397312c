"""What a row's grouped queries may look at: everything but the copies of its newest key."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bento_kv.runtime.kv_cache import zeros


class GroupBias:
    """The attention bias `[slots, 1, group, capacity]`: minus infinity at the copies, 0 before them.

    Behind the copies it is whatever it is: causality hides what stands there. A row's bias is made when it starts to
    decode, and moved on by one position with every token.

    Args:
        slots: rows of the cache.
        group: queries of a row.
        capacity: positions of a slot's buffer.
    """

    def __init__(self, slots: int, group: int, capacity: int) -> None:
        self.array: NDArray[np.float32] = zeros((slots, 1, group, capacity), np.float32)
        self._copies = group - 1
        self._newest = np.full(slots, -2)  # the position that a slot's bias is made for; none is behind -2

    def newest(self, slots: NDArray[np.int64], positions: NDArray[np.int64]) -> None:
        """Make the bias of these slots for newest tokens at these positions."""
        rows = self.array[:, 0]
        moving = self._newest[slots] == positions - 1
        for slot, position in zip(slots[~moving], positions[~moving], strict=True):
            rows[slot, :, :position] = 0
            rows[slot, :, position + 1 : position + self._copies] = -np.inf
        rows[slots, :, positions] = 0
        rows[slots, :, positions + self._copies] = -np.inf
        self._newest[slots] = positions

"""The export far along the sequence: steps behind a past that nobody had to compute.

Attention over thousands of positions is what a long context needs and what takes longest to reach. But a step does not
ask where its past came from. Given the same keys and values, the graph and torch must agree at every length; and since
they agree on what a step writes (`step0-cache`), sequences that are computed from the first token are right by
induction.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bento_kv.contract.checks import Worst, at_most, scaled_error
from bento_kv.contract.precision import FP32_LIMIT
from bento_kv.contract.reference import LayerArrays, NumericReference
from bento_kv.contract.verification import Check
from bento_kv.runtime.graph import CachedGraph

STEP_TOKENS = (1, 3)
SHARES = (1, 4)  # the whole room, and a quarter of it
PIECE = 64


def check_past(graph: CachedGraph, reference: NumericReference, ids: Sequence[int], room: int) -> Check:
    """Decode steps and chunks that end at the last position, and at a quarter of the room.

    Args:
        graph: of the decoder.
        reference: of the same weights.
        ids: whose keys and values are mixed into pasts.
        room: positions that the decoder was exported for.
    """
    pieces = reference.keys_values(ids[:PIECE])
    worst = Worst()
    places = []
    for tokens in (1,) if graph.one_token_steps else STEP_TOKENS:
        for share in SHARES:
            length = room // share - tokens
            if length < 1:
                continue
            past = _mixed(pieces, length)
            step = list(ids[:tokens])
            output = graph.run(np.array([step]), [(key[None], value[None]) for key, value in past])
            expected = reference.logits(step, past=past)
            worst.see(scaled_error(output.logits[0], expected), f"{tokens} tokens behind {length}")
            places.append(length)
    text = (
        f"largest error of the logits of steps behind pasts of {min(places)} to {max(places)} positions, given to both"
    )
    return at_most("long-past", worst.error, FP32_LIMIT, worst.describe(text))


def _mixed(pieces: LayerArrays, length: int) -> LayerArrays:
    """Keys and values of random tokens of a real sequence, the same choice in every layer."""
    chosen = np.random.default_rng(4).integers(0, pieces[0][0].shape[1], length)
    return [(key[:, chosen], value[:, chosen]) for key, value in pieces]

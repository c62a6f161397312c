"""What loops are made of: a printer of step traces, and the few lines that every loop needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bento_kv.runtime.graph import Cache, CachedGraph, GraphOutput, cache_length

Fields = Literal["required", "all"]
Lines = list[dict[str, Any]]
Ids = NDArray[np.int64]
Make = Callable[[CachedGraph, Sequence[int], int, Fields], Lines]
PAD = 0


@dataclass
class Printer:
    """Prints steps with the chosen fields."""

    fields: Fields
    lines: Lines = field(default_factory=list)

    def step(
        self,
        ids: Ids,
        past: Cache,
        output: GraphOutput,
        token: Ids | None,
        *,
        past_length: int | None = None,
        positions: Ids | None = None,
        mask_length: int | None = None,
        taken: Cache | None = None,
        logits: NDArray[np.float32] | None = None,
    ) -> None:
        """`taken` is the cache that the loop keeps of the step, `logits` those that it chose from: `[rows, vocab]`."""
        length = cache_length(past) if past_length is None else past_length
        line: dict[str, Any] = {"step": len(self.lines), "input_ids": ids.tolist(), "past_length": length}
        if self.fields == "all":
            taken = output.present if taken is None else taken
            logits = output.logits[:, -1] if logits is None else logits
            end = length + ids.shape[1]
            own = np.broadcast_to(np.arange(length, end), ids.shape) if positions is None else positions
            line["position_ids"] = own.tolist()
            line["attention_mask_length"] = end if mask_length is None else mask_length
            line["present_length"] = cache_length(taken)
            line["past_sum"] = sums(past)
            line["present_sum"] = sums(taken)
            if token is not None:
                line["next_token"] = token.tolist() if len(token) > 1 else int(token[0])
                top = [[[int(t), float(row[t])] for t in np.argsort(-row)[:3]] for row in logits]
                line["logits_top"] = top if len(top) > 1 else top[0]
        self.lines.append(line)


def sums(cache: Cache) -> list[float]:
    return [float(side.sum(dtype=np.float64)) for layer in cache for side in layer]


def best(output: GraphOutput) -> Ids:
    """`[rows]`."""
    return output.logits[:, -1].argmax(axis=-1).astype(np.int64)


def row(ids: Sequence[int]) -> Ids:
    return np.array([list(ids)], dtype=np.int64)


def run(
    graph: CachedGraph, ids: Ids, past: Cache, positions: Ids | None = None, mask: Ids | None = None
) -> GraphOutput:
    return graph.run(ids, past, mask=mask, positions=positions if graph.takes_positions else None)


def cut(cache: Cache, length: int) -> Cache:
    return [(k[:, :, :length], v[:, :, :length]) for k, v in cache]


def two(prompt: Sequence[int]) -> Ids:
    return np.array([list(prompt), list(prompt)[::-1]], dtype=np.int64)

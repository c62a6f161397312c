"""A decoder directory, loaded to be stepped, whatever the layout of its cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bento_kv.errors import DecoderError
from bento_kv.manifest import Manifest
from bento_kv.plan import Exactness, StepPlan
from bento_kv.runtime.decoder import OnnxDecoder
from bento_kv.runtime.growing import GrowingGraph, geometry
from bento_kv.runtime.growing_decoder import GrowingDecoder
from bento_kv.runtime.session import open_session


class CacheReader(Protocol):
    """What can be seen of a cache.

    Attributes:
        token_bytes: of one position of one slot, all layers.
    """

    @property
    def token_bytes(self) -> int: ...

    def read(self, slot: int, length: int) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Copies of a slot's first `length` keys and values by layer, `[kv_heads, length, head_dim]`."""
        ...


class Decoder(Protocol):
    """A decoder that serves: `step`, and what the proof looks at. Nothing outside knows the layout of its cache.

    Attributes:
        chunk_exact: a prompt's bits do not depend on the chunks, of two tokens or more, that it is computed in.
        takes_positions: tokens can be displaced.
    """

    @property
    def chunk_exact(self) -> bool: ...

    @property
    def takes_positions(self) -> bool: ...

    @property
    def exact(self) -> Exactness: ...

    @property
    def slots(self) -> int: ...

    @property
    def max_length(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def cache(self) -> CacheReader: ...

    def step(self, plan: StepPlan, *, displaced: int = 0) -> NDArray[np.float32]:
        """Compute the plan's tokens: logits `[sum(row.logits for row in plan.rows), vocab_size]`."""
        ...

    def copy(self, source: int, target: int, length: int) -> None:
        """Make the first `length` positions of a slot those of another."""
        ...

    def save(self, slot: int, length: int) -> Any:
        """A copy of a slot's first `length` positions, for `restore`."""
        ...

    def restore(self, slot: int, saved: Any, length: int) -> None:
        """Make the first `length` positions of a copy those of a slot."""
        ...

    def release(self, slot: int, length: int) -> None:
        """Give the memory of a slot's positions from `length` on back."""
        ...


def open_decoder(
    directory: Path,
    *,
    slots: int,
    max_length: int | None = None,
    exact: Exactness = "batch",
    threads: int | None = None,
    providers: Sequence[str] | None = None,
) -> Decoder:
    """Load a decoder directory.

    Args:
        directory: holds `manifest.json` and the graphs.
        slots: rows of the cache.
        max_length: positions of a row; the manifest's unless set.
        exact: see `Exactness`; a growing cache has `batch` only.
        threads: of a step; as many as this process has CPUs unless set.
        providers: execution providers; the CPU's unless set.

    Raises:
        ManifestError: the directory is not a decoder.
        DecoderError: the runtime refuses the graph, the cache does not fit in memory, or the layout has not what is
            asked for.
    """
    manifest = Manifest.read(directory)
    if manifest.layout == "in-place":
        return OnnxDecoder(
            directory, slots=slots, max_length=max_length, exact=exact, threads=threads, providers=providers
        )
    if exact != "batch":
        raise DecoderError(
            f"{directory} has a growing cache, whose bits depend on how a sequence is cut into steps: "
            f"exact={exact!r} takes the in-place layout, which `bento-kv export` makes; or set exact='batch'"
        )
    length = max_length or manifest.max_length
    if length > manifest.max_length:
        raise DecoderError(f"max_length {length} is more than the {manifest.max_length} positions of {directory}")
    files = [directory / name for name in manifest.graphs]
    graph = GrowingGraph(
        [open_session(file, threads=threads, providers=providers) for file in files],
        heads_dim=geometry(files[0].parent) or geometry(directory),
    )
    return GrowingDecoder(graph, slots=slots, max_length=length, vocab_size=manifest.vocab_size)

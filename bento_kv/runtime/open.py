"""A decoder directory, loaded to be stepped, whatever the layout of its cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bento_kv.contract.decoder import Decoder
from bento_kv.contract.manifest import Manifest
from bento_kv.contract.plan import Exactness
from bento_kv.errors import DecoderError
from bento_kv.runtime.decoder import OnnxDecoder
from bento_kv.runtime.growing import GrowingGraph, geometry
from bento_kv.runtime.growing_decoder import GrowingDecoder
from bento_kv.runtime.session import open_session


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

"""What the proof computes, in order: stages, each with a decoder of its own that is gone before the next is opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, Literal, TypeVar

import numpy as np

from bento_kv.contract.decoder import Decoder
from bento_kv.contract.manifest import Manifest
from bento_kv.contract.plan import Exactness
from bento_kv.contract.precision import PRECISIONS
from bento_kv.contract.reference import NumericReference, Truth
from bento_kv.contract.verification import Check
from bento_kv.doctor.export.loading import open_cached
from bento_kv.proof.contract import longest_window
from bento_kv.proof.effort import SEQUENCE, Effort
from bento_kv.proof.exactness import check_neighbours, check_splits
from bento_kv.proof.lengths import check_lengths, first_of_last_steps
from bento_kv.proof.numeric import check_far, check_greedy, check_numbers, check_ragged, check_window
from bento_kv.proof.past import check_past
from bento_kv.proof.quality import check_quality
from bento_kv.proof.slots import check_full, check_reuse
from bento_kv.proof.threads import ThreadComparison
from bento_kv.runtime.graph import CachedGraph
from bento_kv.runtime.open import open_decoder

BEYOND_WINDOW = 64
GREEDY_STEPS = 16
SLOTS = 17  # sixteen, as the service has unless told otherwise, and one that nothing has used when reuse is checked

Layer = Literal["export", "loop"]
Found = Check | Sequence[Check]
Subject = TypeVar("Subject")


@dataclass(frozen=True, slots=True)
class Work(Generic[Subject]):
    """A piece of the proof, and the layer that is at fault if it fails."""

    layer: Layer
    name: str
    run: Callable[[Subject], Found]


@dataclass(frozen=True, slots=True)
class Stage(Generic[Subject]):
    """Work on one decoder, or on its bare graph."""

    open: Callable[[], Subject]
    works: Sequence[Work[Subject]]

    def run(self, do: Callable[[Layer, str, Callable[[], Found]], None]) -> None:
        """Open what is worked on, and hand every piece of work to `do`; errors of the runtime pass through."""
        subject = self.open()
        for work in self.works:
            do(work.layer, work.name, partial(work.run, subject))


class Probes:
    """Token sequences to test with: random, because a random text leaves no layer idle; the same on every run."""

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


def stages(
    directory: Path,
    floats: Path,
    manifest: Manifest,
    model: NumericReference,
    threads: int,
    texts: Callable[[], Sequence[Sequence[int]]],
    at_last: Callable[[Decoder, Sequence[Sequence[int]]], None],
) -> list[Stage[Decoder] | Stage[CachedGraph]]:
    """The proof's stages.

    Args:
        directory: of the decoder.
        floats: of its float twin, which is compared with torch in its place; its own in fp32.
        manifest: its manifest.
        model: what it was made from.
        threads: of a step.
        texts: gives the token ids of probe text.
        at_last: is given the decoder as it serves, and prompts, when it has been compared with torch.
    """
    effort = Effort.plan(manifest, model.operations, SLOTS)
    probes = Probes(manifest, longest_window(directory, manifest), effort.longest)
    limit = PRECISIONS[manifest.coarsest].rounding
    comparison = ThreadComparison(probes.short, threads, limit)

    def decoder(exact: Exactness, length: int, threads: int = threads, at: Path = directory) -> Callable[[], Decoder]:
        return partial(_open, at, exact, threads, length)

    def remember(decoder: Decoder) -> Found:
        at_last(decoder, probes.prompts)
        return comparison.remember(decoder)

    def past(graph: CachedGraph) -> Found:
        return check_past(graph, model, probes.short, manifest.max_length)

    def quality(decoder: Decoder) -> Found:
        return check_quality(decoder, model, texts()[: effort.texts], manifest.coarsest)

    exact_works = list(_against_torch(model, probes, effort))
    serving = [Work("export", "quality on text", quality), Work("loop", "golden prompts", remember)]
    whole = manifest.max_length
    return [
        *(
            [Stage(decoder("batch", whole), [*exact_works, *serving])]
            if floats == directory
            else [Stage(decoder("batch", whole, at=floats), exact_works), Stage(decoder("batch", whole), serving)]
        ),
        Stage(lambda: _open_graph(floats, threads), [Work("export", "long pasts", past)]),
        *(
            Stage(
                decoder(exact, effort.slot_length),
                list(_against_itself(probes, effort, limit, _apart(manifest, exact))),
            )
            for exact in _modes(manifest)
        ),
        *(
            Stage(
                decoder("batch", effort.slot_length, count),
                [Work("loop", f"threads: {count}", partial(comparison.compare, threads=count))],
            )
            for count in comparison.others
        ),
    ]


def _modes(manifest: Manifest) -> tuple[Exactness, ...]:
    return ("full", "batch") if manifest.layout == "in-place" else ("batch",)


def _apart(manifest: Manifest, exact: Exactness) -> bool:
    """Whether prompts and what continues them go through different weights."""
    return manifest.layout == "in-place" and len(manifest.graphs) > 1 and exact == "batch"


def _open(directory: Path, exact: Exactness, threads: int, length: int) -> Decoder:
    return open_decoder(directory, slots=SLOTS, max_length=length, exact=exact, threads=threads)


def _open_graph(directory: Path, threads: int) -> CachedGraph:
    graph, _ = open_cached(directory, threads=threads)
    return graph


def _against_torch(model: NumericReference, probes: Probes, effort: Effort) -> Iterator[Work[Decoder]]:
    """The checks that need the reference, in the order in which they say most about a fault."""
    last = range(first_of_last_steps(effort.longest) + 1, effort.longest + 1)
    wanted = [*range(1, probes.length + 1), *effort.lengths, *last]
    truth: list[Truth] = []

    def numbers(decoder: Decoder) -> Found:
        truth.append(Truth(model, probes.sequence, wanted))
        return check_numbers(decoder, model, truth[0], probes.length)

    yield Work("export", "prefill, cache and decoding", numbers)
    yield Work("export", "prompt lengths", lambda d: check_lengths(d, truth[0], effort.lengths))
    yield Work("export", "far positions", lambda d: check_far(d, model, probes.sequence) if d.takes_positions else [])
    if probes.beyond_window:
        yield Work("export", "sliding window", lambda d: check_window(d, model, probes.beyond_window))
    yield Work("loop", "ragged rows", lambda d: check_ragged(d, model, probes.rows))
    yield Work("loop", "greedy tokens", lambda d: check_greedy(d, model, probes.prompts, probes.greedy_steps))


def _against_itself(probes: Probes, effort: Effort, rounding: float, apart: bool) -> Iterator[Work[Decoder]]:
    """The checks by equality, of either mode; reuse first, while there is a slot that nobody has used."""
    yield Work("loop", "slots used again", lambda d: check_reuse(d, probes.short))
    yield Work("loop", "splits", lambda d: check_splits(d, probes.short, effort.walks, rounding, apart=apart))
    yield Work("loop", "neighbours", lambda d: check_neighbours(d, probes.short))
    yield Work("loop", "full slots", lambda d: check_full(d, effort.full_slots))

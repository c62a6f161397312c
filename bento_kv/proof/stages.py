"""What the proof computes, in order: stages, each with a decoder of its own that is gone before the next is opened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from bento_kv.contract.decoder import Decoder
from bento_kv.contract.manifest import Manifest
from bento_kv.contract.plan import Exactness
from bento_kv.contract.precision import PRECISIONS
from bento_kv.contract.reference import NumericReference, Truth
from bento_kv.contract.remedies import remedies_of
from bento_kv.contract.verification import Check, GoldenPrompt
from bento_kv.doctor.export.loading import open_cached
from bento_kv.doctor.faults import Part
from bento_kv.proof.contract import longest_window
from bento_kv.proof.effort import Effort
from bento_kv.proof.exactness import check_neighbours, check_splits
from bento_kv.proof.lengths import check_lengths, first_of_last_steps
from bento_kv.proof.numeric import check_far, check_greedy, check_numbers, check_ragged, check_window
from bento_kv.proof.past import check_past
from bento_kv.proof.probes import Probes
from bento_kv.proof.quality import check_quality
from bento_kv.proof.slots import check_full, check_reuse
from bento_kv.proof.threads import ThreadComparison
from bento_kv.runtime.golden import record_golden
from bento_kv.runtime.graph import CachedGraph
from bento_kv.runtime.open import open_decoder

SLOTS = 17  # sixteen, as the service has unless told otherwise, and one that nothing has used when reuse is checked
GOLDEN_STEPS = 8

Found = Check | Sequence[Check]
Subject = TypeVar("Subject")


@dataclass(frozen=True, slots=True)
class Work(Generic[Subject]):
    """A piece of the proof, and what is at fault if it fails."""

    part: Part
    name: str
    run: Callable[[Subject], Found]


@dataclass(frozen=True, slots=True)
class Stage(Generic[Subject]):
    """Work on one decoder, or on its bare graph."""

    open: Callable[[], Subject]
    works: Sequence[Work[Subject]]

    def run(self, do: Callable[[Part, str, Callable[[], Found]], None]) -> None:
        """Open what is worked on, and hand every piece of work to `do`; errors of the runtime pass through."""
        subject = self.open()
        for work in self.works:
            do(work.part, work.name, partial(work.run, subject))


class ProofPlan:
    """The stages of one proof, what all of them need, and what the decoder that serves leaves to later ones.

    Args:
        directory: of the decoder.
        floats: of its float twin, which is compared with torch in its place; its own in fp32.
        manifest: its manifest.
        model: what it was made from.
        threads: of a step.
        texts: gives the token ids of probe text.

    Attributes:
        golden: what the decoder answered as it serves; empty until its stage has run.
    """

    def __init__(
        self,
        directory: Path,
        floats: Path,
        manifest: Manifest,
        model: NumericReference,
        threads: int,
        texts: Callable[[], Sequence[Sequence[int]]],
    ) -> None:
        self.directory, self.floats, self.manifest = directory, floats, manifest
        self.model, self.threads, self.texts = model, threads, texts
        self.effort = Effort.plan(manifest, model.operations, SLOTS)
        self.probes = Probes(manifest, longest_window(directory, manifest), self.effort.longest)
        self.limit = PRECISIONS[manifest.coarsest].rounding
        self.with_threads = ThreadComparison(self.probes.short, threads, self.limit)
        self.golden: tuple[GoldenPrompt, ...] = ()

    def stages(self) -> list[Stage[Any]]:
        """The plan: what is worked on, by which checks."""
        whole, room = self.manifest.max_length, self.effort.slot_length
        beside = [work for work in _BESIDE_TORCH if work is not _WINDOW or self.probes.beyond_window]
        if self.floats == self.directory:
            compared = [Stage(partial(self._beside_torch, self.directory, whole), [*beside, *_SERVING])]
        else:
            compared = [
                Stage(partial(self._beside_torch, self.floats, whole), beside),
                Stage(partial(self._beside_torch, self.directory, whole), _SERVING),
            ]
        return [
            *compared,
            Stage(self._open_graph, [Work("export", "long pasts", self._check_past)]),
            *(Stage(partial(self._by_itself, exact, room), _BY_ITSELF) for exact in self._modes()),
            *(
                Stage(
                    partial(self._open, self.directory, room, threads=count),
                    [Work("loop", f"threads: {count}", partial(self.with_threads.compare, threads=count))],
                )
                for count in self.with_threads.others
            ),
        ]

    def _modes(self) -> tuple[Exactness, ...]:
        return ("full", "batch") if self.manifest.layout == "in-place" else ("batch",)

    def _beside_torch(self, directory: Path, length: int) -> _BesideTorch:
        return _BesideTorch(self, self._open(directory, length))

    def _by_itself(self, exact: Exactness, length: int) -> _ByItself:
        return _ByItself(self, self._open(self.directory, length, exact))

    def _open(self, directory: Path, length: int, exact: Exactness = "batch", *, threads: int | None = None) -> Decoder:
        return open_decoder(directory, slots=SLOTS, max_length=length, exact=exact, threads=threads or self.threads)

    def _open_graph(self) -> CachedGraph:
        graph, _ = open_cached(self.floats, threads=self.threads)
        return graph

    def _check_past(self, graph: CachedGraph) -> Found:
        return check_past(graph, self.model, self.probes.short, self.manifest.max_length)


@dataclass(frozen=True)
class _BesideTorch:
    """A decoder, or its float twin, and torch's logits for as long as it is open."""

    plan: ProofPlan
    decoder: Decoder

    @cached_property
    def truth(self) -> Truth:
        """The logits after all prefixes that are compared, from one pass."""
        effort, probes = self.plan.effort, self.plan.probes
        last = range(first_of_last_steps(effort.longest) + 1, effort.longest + 1)
        wanted = [*range(1, probes.length + 1), *effort.lengths, *last]
        return Truth(self.plan.model, probes.sequence, wanted)

    def numbers(self) -> Found:
        return check_numbers(self.decoder, self.plan.model, self.truth, self.plan.probes.length)

    def lengths(self) -> Found:
        return check_lengths(self.decoder, self.truth, self.plan.effort.lengths)

    def far(self) -> Found:
        if not self.decoder.takes_positions:
            return []
        return check_far(self.decoder, self.plan.model, self.plan.probes.sequence)

    def window(self) -> Found:
        return check_window(self.decoder, self.plan.model, self.plan.probes.beyond_window)

    def ragged(self) -> Found:
        return check_ragged(self.decoder, self.plan.model, self.plan.probes.rows)

    def greedy(self) -> Found:
        return check_greedy(self.decoder, self.plan.model, self.plan.probes.prompts, self.plan.probes.greedy_steps)

    def quality(self) -> Found:
        texts = self.plan.texts()[: self.plan.effort.texts]
        return check_quality(self.decoder, self.plan.model, texts, self.plan.manifest)

    def remembered(self) -> Found:
        """Nothing to check yet: the answers to compare with, on the machine that serves and with other threads."""
        prompts = self.plan.probes.prompts
        self.plan.golden = tuple(record_golden(self.decoder, prompt, GOLDEN_STEPS) for prompt in prompts)
        return self.plan.with_threads.remember(self.decoder)


@dataclass(frozen=True)
class _ByItself:
    """A decoder in one mode, whose results are compared with its own."""

    plan: ProofPlan
    decoder: Decoder

    def reuse(self) -> Found:
        return check_reuse(self.decoder, self.plan.probes.short)

    def splits(self) -> Found:
        manifest = self.plan.manifest
        two_graphs = manifest.layout == "in-place" and len(manifest.graphs) > 1 and self.decoder.exact == "batch"
        effort, ids = self.plan.effort, self.plan.probes.short
        remedies = remedies_of(manifest, "rounding")
        return check_splits(self.decoder, ids, effort.walks, self.plan.limit, two_graphs=two_graphs, remedies=remedies)

    def neighbours(self) -> Found:
        return check_neighbours(self.decoder, self.plan.probes.short)

    def full(self) -> Found:
        return check_full(self.decoder, self.plan.effort.full_slots)


_WINDOW = Work("export", "sliding window", _BesideTorch.window)
# In the order in which they say most about a fault.
_BESIDE_TORCH = (
    Work("export", "prefill, cache and decoding", _BesideTorch.numbers),
    Work("export", "prompt lengths", _BesideTorch.lengths),
    Work("export", "far positions", _BesideTorch.far),
    _WINDOW,
    Work("loop", "ragged rows", _BesideTorch.ragged),
    Work("loop", "greedy tokens", _BesideTorch.greedy),
)
_SERVING = (
    Work("export", "quality on text", _BesideTorch.quality),
    Work("loop", "golden prompts", _BesideTorch.remembered),
)
# By equality; reuse first, while there is a slot that nobody has used.
_BY_ITSELF = (
    Work("loop", "slots used again", _ByItself.reuse),
    Work("loop", "splits", _ByItself.splits),
    Work("loop", "neighbours", _ByItself.neighbours),
    Work("loop", "full slots", _ByItself.full),
)

"""What is said of each mutant and of each right decoder and loop, beside what has to be said."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bento_kv.doctor.diagnose import diagnose
from bento_kv.doctor.export.loading import open_decoder_file
from bento_kv.doctor.loop.reading import read_trace
from bento_kv.doctor.loop.trace import Trace
from bento_kv.doctor.records import Diagnosis
from bento_kv.runtime.graph import CachedGraph
from tests.mutants import loops
from tests.mutants.decoders import Decoders
from tests.mutants.graphs import MUTANTS, Mutant
from tests.mutants.healthy import DECODERS, Healthy
from tests.mutants.loops import Loop
from tests.mutants.printing import Fields

PROMPT = (5, 9, 3, 17, 22, 8, 31)
# Right decoders that loops are run on, one after the other: five layouts.
LOOP_DECODERS = (
    Healthy("llama"),
    Healthy("gpt2", "stacked"),
    Healthy("qwen2", "two files"),
    Healthy("packed", "packed"),
    Healthy("bloom", "transposed keys"),
)
_LACKS = {"packed": "mask", "bloom": "positions"}


@dataclass(frozen=True)
class Outcome:
    """One diagnosis.

    Attributes:
        kind: `graph`, `loop`, `right decoder` or `right loop`.
        found: kinds of findings in their order, those of the export before those of the loop.
        scenario: and verdict of both layers, as in "D: export wrong, loop unknown".
    """

    kind: str
    name: str
    decoder: str
    found: tuple[str, ...]
    scenario: str


def observed(kind: str, name: str, decoder: str, diagnosis: Diagnosis) -> Outcome:
    """What the doctor said."""
    found = dict.fromkeys(finding.id for finding in (*diagnosis.export.findings, *diagnosis.loop.findings))
    scenario = f"{diagnosis.scenario}: export {diagnosis.export.verdict}, loop {diagnosis.loop.verdict}"
    return Outcome(kind, name, decoder, tuple(found), scenario)


def _named(base: str, layout: str) -> str:
    return base if base == layout else f"{base}, {layout}"


# Graphs.


def run_mutant(mutant: Mutant, decoders: Decoders, folder: Path) -> Outcome:
    """Make it, and have it diagnosed."""
    mutant.write(decoders, folder)
    reference = None
    if mutant.reference:
        from bento_kv.proof.parity import TorchReference

        source = str(decoders.source(mutant.base))
        reference = lambda: TorchReference(source, None)
    diagnosis = diagnose(folder, reference=reference)
    return observed("graph", mutant.name, _named(mutant.base, mutant.layout), diagnosis)


def promised_mutant(mutant: Mutant) -> Outcome:
    """What has to be said of it: no loop is judged on wrong numbers."""
    decoder = _named(mutant.base, mutant.layout)
    return Outcome("graph", mutant.name, decoder, mutant.ids, "D: export wrong, loop unknown")


def run_decoder(healthy: Healthy, decoders: Decoders, folder: Path) -> Outcome:
    """Write it, and have it diagnosed."""
    healthy.write(decoders, folder)
    return observed("right decoder", healthy.name, _named(healthy.base, healthy.layout), diagnose(folder))


def promised_decoder(healthy: Healthy) -> Outcome:
    decoder = _named(healthy.base, healthy.layout)
    return Outcome("right decoder", healthy.name, decoder, (), "C: export right, loop right")


# Loops.


def decoder_of(loop: Loop, turn: int = 0) -> Healthy:
    """The decoder that a loop is run on: each in turn, if it takes what the loop feeds."""
    fit = [decoder for decoder in LOOP_DECODERS if _LACKS.get(decoder.base) not in loop.needs]
    return fit[(loops.LOOPS.index(loop) + turn) % len(fit)]


def open_decoder(target: Path) -> CachedGraph:
    """As the doctor drives it."""
    graph = open_decoder_file(target).graph
    assert graph is not None
    return graph


def trace_of(loop: Loop, graph: CachedGraph, fields: Fields) -> Trace:
    """What the loop prints."""
    lines = loop.make(graph, PROMPT, loop.steps, fields)
    return read_trace(io.StringIO("\n".join(json.dumps(line) for line in lines)))


def run_loop(loop: Loop, target: Path) -> Outcome:
    """Run it on the decoder at `target`, and have its trace diagnosed with the decoder."""
    trace = trace_of(loop, open_decoder(target), "all")
    diagnosis = diagnose(target, trace=trace, pad_token_id=loop.pad_token_id)
    return observed(_kind(loop), loop.name, _named_decoder(loop), diagnosis)


def promised_loop(loop: Loop) -> Outcome:
    """What has to be said of it."""
    scenario = "A: export right, loop wrong" if loop.ids else "C: export right, loop right"
    return Outcome(_kind(loop), loop.name, _named_decoder(loop), loop.ids, scenario)


def _kind(loop: Loop) -> str:
    return "loop" if loop.ids else "right loop"


def _named_decoder(loop: Loop) -> str:
    decoder = decoder_of(loop)
    return _named(decoder.base, decoder.layout)


def promised() -> list[Outcome]:
    """All of them."""
    return [
        *(promised_mutant(mutant) for mutant in MUTANTS),
        *(promised_loop(loop) for loop in loops.FAULTY),
        *(promised_decoder(decoder) for decoder in DECODERS),
        *(promised_loop(loop) for loop in loops.HEALTHY),
    ]


def run_all(decoders: Decoders, folder: Path) -> Iterator[Outcome]:
    """All of them, in the same order."""

    def place(*names: str) -> Path:
        made = folder / "-".join(names).replace("/", "-")
        made.mkdir()
        return made

    for mutant in MUTANTS:
        yield run_mutant(mutant, decoders, place("mutant", mutant.name))
    targets = {decoder: place("loop", decoder.base) for decoder in LOOP_DECODERS}
    for decoder, target in targets.items():
        decoder.write(decoders, target)
    yield from (run_loop(loop, targets[decoder_of(loop)]) for loop in loops.FAULTY)
    for healthy in DECODERS:
        yield run_decoder(healthy, decoders, place("right", healthy.name))
    yield from (run_loop(loop, targets[decoder_of(loop)]) for loop in loops.HEALTHY)


def layouts_used(outcomes: Sequence[Outcome], kind: str) -> set[str]:
    """Decoders that outcomes of a kind are of."""
    return {outcome.decoder.rpartition(", ")[2] for outcome in outcomes if outcome.kind == kind}

"""Every fault is found, blamed on the right layer and named first; and nothing is said against what is right."""

from __future__ import annotations

from pathlib import Path

import pytest

from bento_kv.doctor.diagnose import diagnose
from bento_kv.doctor.faults import EXPORT_FAULTS, LOOP_FAULTS
from bento_kv.doctor.records import Diagnosis
from tests.effort import slow_but
from tests.mutants import outcomes
from tests.mutants.decoders import Decoders
from tests.mutants.graphs import MUTANTS, Mutant
from tests.mutants.healthy import DECODERS, Healthy
from tests.mutants.loops import FAULTY, HEALTHY, LOOPS, Loop
from tests.mutants.table import DOCUMENT, document, totals

BY_NAME = {mutant.name: mutant for mutant in MUTANTS}
LOOP_BY_NAME = {loop.name: loop for loop in LOOPS}
# The models that mutants are made of and loops are run on; each of the others would be exported for itself alone.
FAST_BASES = {decoder.base for decoder in outcomes.LOOP_DECODERS} | {"genai"}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_fault_in_a_graph_is_named(mutant: Mutant, decoders: Decoders, tmp_path: Path) -> None:
    assert outcomes.run_mutant(mutant, decoders, tmp_path) == outcomes.promised_mutant(mutant)


@pytest.mark.parametrize(
    "decoder", slow_but([d for d in DECODERS if d.base in FAST_BASES], DECODERS), ids=lambda decoder: decoder.name
)
def test_nothing_is_said_against_a_right_decoder(decoder: Healthy, decoders: Decoders, tmp_path: Path) -> None:
    assert outcomes.run_decoder(decoder, decoders, tmp_path) == outcomes.promised_decoder(decoder)


@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.name)
def test_a_loop_on_a_real_decoder_is_judged_rightly(loop: Loop, loop_targets: dict[Healthy, Path]) -> None:
    target = loop_targets[outcomes.decoder_of(loop)]
    assert not loop.hidden(outcomes.open_decoder(target), outcomes.PROMPT, "all")
    assert outcomes.run_loop(loop, target) == outcomes.promised_loop(loop)


@pytest.mark.parametrize("loop", [l for l in LOOPS if "required" in l.only], ids=lambda loop: loop.name)
def test_required_fields_suffice_on_another_decoder(loop: Loop, loop_targets: dict[Healthy, Path]) -> None:
    targets = [loop_targets[outcomes.decoder_of(loop, turn)] for turn in (2, 3)]
    graphs = [outcomes.open_decoder(target) for target in targets]
    # A fault that prints what a right loop would have printed is nobody's to see: on the other decoder it does not.
    shown = [n for n, graph in enumerate(graphs) if not loop.hidden(graph, outcomes.PROMPT, "required")]
    assert shown
    trace = outcomes.trace_of(loop, graphs[shown[0]], "required")
    diagnosis = diagnose(targets[shown[0]], trace=trace, pad_token_id=loop.pad_token_id)
    assert diagnosis.scenario == ("A" if loop.ids else "C")
    first = next((step.step for step in diagnosis.measurements.loop if step.findings), None)
    assert loop.is_judged(diagnosis.loop.findings, first, "required"), diagnosis.loop


# A fault of the export of each stage: declared, sizes, cache, positions; and the loops that shapes alone give away.
BOTH = [
    ("batch declared", "no cache, whole sequence"),
    ("sequence baked within", "past never fed"),
    ("new positions only", "step 0 skipped, whole sequence at step 1"),
    ("past of layer 1 times 0", "past fed, whole sequence too"),
    ("positions restart", "past of step 0 at every step"),
    ("packed, positions restart", "past dropped from step 3"),
]


def _diagnosed(mutant: Mutant, loop: Loop, decoders: Decoders, folder: Path) -> Diagnosis:
    """The trace comes from a right decoder of the same model: what a loop does wrong is its own."""
    (folder / "right").mkdir()
    (folder / "wrong").mkdir()
    Healthy(mutant.base, mutant.layout).write(decoders, folder / "right")
    mutant.write(decoders, folder / "wrong")
    trace = outcomes.trace_of(loop, outcomes.open_decoder(folder / "right"), "all")
    return diagnose(folder / "wrong", trace=trace)


@pytest.mark.parametrize(("mutant", "loop"), BOTH)
def test_both_layers_wrong_is_b(mutant: str, loop: str, decoders: Decoders, tmp_path: Path) -> None:
    diagnosis = _diagnosed(BY_NAME[mutant], LOOP_BY_NAME[loop], decoders, tmp_path)
    assert (diagnosis.scenario, diagnosis.plan) == ("B", (2, 1))
    assert diagnosis.export.findings[0].id == BY_NAME[mutant].ids[0]
    assert tuple(finding.id for finding in diagnosis.loop.findings) == LOOP_BY_NAME[loop].ids


@pytest.mark.parametrize("mutant", [mutant for mutant, _ in BOTH])
def test_a_right_loop_on_a_wrong_export_is_d(mutant: str, decoders: Decoders, tmp_path: Path) -> None:
    diagnosis = _diagnosed(BY_NAME[mutant], LOOP_BY_NAME["greedy"], decoders, tmp_path)
    assert (diagnosis.scenario, diagnosis.plan, diagnosis.loop.verdict) == ("D", (2,), "right")
    assert diagnosis.export.findings[0].id == BY_NAME[mutant].ids[0]


def test_every_finding_has_a_cause_here_and_most_have_several() -> None:
    causes = {fault.id: sum(mutant.ids[0] == fault.id for mutant in MUTANTS) for fault in EXPORT_FAULTS}
    assert min(causes.values()) >= 2
    assert sum(count >= 3 for count in causes.values()) >= 14
    assert {id for loop in FAULTY for id in loop.ids} == {fault.id for fault in LOOP_FAULTS}
    assert {id for mutant in MUTANTS for id in mutant.ids} <= causes.keys()


def test_there_are_enough_of_each_on_enough_layouts() -> None:
    promised = outcomes.promised()
    assert len(MUTANTS) >= 34
    assert len(FAULTY) >= 16
    assert len(DECODERS) + len(HEALTHY) >= 28
    assert len(outcomes.layouts_used(promised, "graph")) >= 10
    assert len(outcomes.layouts_used(promised, "loop")) >= 4
    assert len({(o.kind, o.name) for o in promised}) == len(promised)


def test_the_page_says_what_was_found() -> None:
    promised = outcomes.promised()
    assert totals(promised, promised).alarms == 0
    assert DOCUMENT.read_text(encoding="utf-8") == document(promised, promised)

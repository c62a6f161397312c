"""Judges the export of a decoder: from what it declares to its numbers, each question resting on those before."""

from __future__ import annotations

from collections.abc import Callable

from bento_kv.contract.precision import CACHE_ELEMENTS, PRECISIONS, Precision, coarsest
from bento_kv.contract.reference import NumericReference
from bento_kv.doctor.export.appended import check_lengths, check_present
from bento_kv.doctor.export.declared import check_declared
from bento_kv.doctor.export.driven import (
    check_cached,
    check_causal,
    check_logits_vary,
    check_numbers_are_numbers,
    check_repeatable,
    measure_steps,
)
from bento_kv.doctor.export.far import Far
from bento_kv.doctor.export.far_reference import check_far_reference
from bento_kv.doctor.export.judge_carried import judge_carried
from bento_kv.doctor.export.judgement import ExportJudgement, Progress
from bento_kv.doctor.export.length import declared_length
from bento_kv.doctor.export.loading import Opened, carried_graph, measured_vocab_size
from bento_kv.doctor.export.probe import Probe, keeps_last
from bento_kv.doctor.export.reference import check_reference
from bento_kv.doctor.export.rows import check_cached_rows, check_mask, check_rows
from bento_kv.doctor.export.sizes import Acceptance, RunSizes
from bento_kv.doctor.faults import FAULTS
from bento_kv.doctor.records import Finding, Measurements, PartDiagnosis
from bento_kv.errors import DecoderError
from bento_kv.onnx_file import precision, weight_count
from bento_kv.runtime.graph import CachedGraph
from bento_kv.runtime.growing import genai_geometry


def judge_export(
    opened: Opened,
    *,
    reference: Callable[[], NumericReference] | None = None,
    progress: Progress = lambda _: None,
) -> ExportJudgement:
    """Judge the graph that takes a past; without a reference by itself alone.

    Args:
        opened: the decoder, as far as it could be opened.
        reference: makes the model that it was exported from; called only if the graph runs.
        progress: told what is being tried.
    """
    if opened.interface is not None and opened.interface.foreign and opened.sessions:
        return judge_carried(opened, carried_graph(opened), precision_of(opened), reference, progress)
    examination = _Examination(opened)
    if opened.interface is not None:
        progress("inputs and outputs")
        examination.declared()
    if (graph := examination.runnable()) is not None:
        progress("sizes")
        acceptance = examination.sizes(graph)
        progress("steps with a past and without")
        try:
            probe = examination.probe(graph, acceptance)
            slides = keeps_last(probe)
        except DecoderError as error:
            examination.stopped(error)
            return examination.judgement()
        if slides:  # what cannot be judged is said to whoever asked, and is no fault of the graph
            sliding = judge_carried(opened, carried_graph(opened), precision_of(opened), reference, progress)
            if sliding.diagnosis.verdict == "right":
                return sliding
        try:
            if examination.usable(probe):
                examination.steps(probe, acceptance)
                if reference is not None:
                    progress("against torch")
                    examination.reference(probe, reference())
                elif examination.right:
                    progress("far along")
                    examination.far(probe)
        except DecoderError as error:
            examination.stopped(error)
    return examination.judgement()


def judge_first(opened: Opened) -> list[Finding]:
    """What is wrong with the graph for step 0 of a pair, judged alone: it takes no past, and no step follows it."""
    if opened.graph is None:
        return opened.findings
    vocab_size = measured_vocab_size(opened) or 1
    wrong = Acceptance(opened.graph, vocab_size).findings_of_prompts()
    if wrong:
        return wrong
    limit = PRECISIONS[precision(opened.models[-1])].self_consistency
    probe = Probe(opened.graph, vocab_size, limit, chunk=False)
    return [*check_causal(probe), *check_rows(probe)]


class _Examination:
    """What was found so far."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._findings = list(opened.findings)
        self._measurements = Measurements()
        self._notes: list[str] = []
        self._vocab_size = 0
        self._tried = False

    def judgement(self) -> ExportJudgement:
        diagnosis = PartDiagnosis.of(self._findings, tried=self._tried)
        return ExportJudgement(diagnosis, self._measurements, tuple(self._notes), self._vocab_size)

    def declared(self) -> None:
        """What needs no run."""
        self._findings += check_declared(self._opened, configured=genai_geometry(self._opened.folder))

    def runnable(self) -> CachedGraph | None:
        """The graph, unless its cache cannot be passed on: that has to be mended before anything is said of numbers."""
        blocked = any(FAULTS[finding.id].blocks for finding in self._findings)
        return None if blocked else self._opened.graph

    def sizes(self, graph: CachedGraph) -> Acceptance:
        """Which sizes it takes. Of a kind that is declared wrongly already, what runs show is the consequence."""
        self._vocab_size = measured_vocab_size(self._opened) or 1
        acceptance = Acceptance(graph, self._vocab_size)
        declared = [finding.axis for finding in self._findings if finding.id == "dynamic-axis-baked"]
        known = {finding.id for finding in self._findings}
        found = acceptance.findings(one_token_steps=self._opened.one_token_steps, declared=declared)
        self._findings += [finding for finding in found if finding.id not in known]
        return acceptance

    def probe(self, graph: CachedGraph, acceptance: Acceptance) -> Probe:
        """The graph, and tokens to run it on."""
        if acceptance.one_token_steps and not self._opened.one_token_steps:
            self._notes.append("behind a past the graph takes one token at a time: no chunked prefill, no speculation")
        chunk = not (self._opened.one_token_steps or acceptance.one_token_steps)
        probe = Probe(graph, self._vocab_size, PRECISIONS[precision_of(self._opened)].self_consistency, chunk=chunk)
        self._tried = True
        return probe

    def usable(self, probe: Probe) -> bool:
        """Whether its cache can be fed back, and its numbers compared with anything."""
        wrong = (
            check_lengths(probe, self._opened.present_names)
            or check_numbers_are_numbers(probe)
            or check_repeatable(probe)
            or check_logits_vary(probe)
        )
        self._findings += wrong
        return not wrong

    def steps(self, probe: Probe, acceptance: Acceptance) -> None:
        """The decoder against itself: with a past and without, rows together and alone."""
        names = self._opened.present_names
        self._measurements = Measurements(limit=probe.limit, steps=measure_steps(probe))
        several = all(
            acceptance.tries(RunSizes(rows, 7, 0)) and acceptance.tries(RunSizes(rows, 1, 7)) for rows in (2, 3)
        )
        mixed = check_rows(probe) if several else []
        # Each rests on what the one before has shown, so the first that fails is the one to be mended.
        alone = check_present(probe, names) or check_causal(probe) or check_cached(probe, names)
        wrong = [*alone, *mixed]
        if several and not wrong:
            wrong = check_cached_rows(probe) or check_mask(probe)
        # A cause that has a name comes before numbers that differ for no reason found.
        self._findings += sorted(wrong, key=lambda finding: finding.id == "numeric-mismatch")

    @property
    def right(self) -> bool:
        """Whether nothing was found until now: what is wrong near is not looked at far away."""
        return not self._findings

    def far(self, probe: Probe, reference: NumericReference | None = None) -> None:
        """The decoder far along the sequence, against itself or the model that it was exported from."""
        declared = declared_length(self._opened.folder, reference)
        rounded = precision_of(self._opened) == "int8"
        far = Far(probe, declared, weights=weight_count(self._opened.models[-1]), rounded=rounded)
        found = far.alone(reference is None)
        if reference is not None and not found:
            found = check_far_reference(far, reference, PRECISIONS[precision_of(self._opened)].against_reference)
        self._findings += found
        self._measurements = self._measurements.model_copy(update={"reach": far.reach})

    def reference(self, probe: Probe, reference: NumericReference) -> None:
        """The decoder against the model that it was exported from."""
        error, wrong = check_reference(probe, reference, precision_of(self._opened))
        self._measurements = self._measurements.model_copy(update={"reference": error})
        self._findings += wrong
        if self.right:
            self.far(probe, reference)

    def stopped(self, error: DecoderError) -> None:
        """What cannot be run any more has findings that say why, or gets one."""
        if not self._findings:
            self._findings.append(
                Finding(
                    id="dynamic-axis-baked",
                    where="the graph",
                    explain=f"Steps of a few sizes run, and others do not: {error}.",
                    fix="Export again with batch, sequence and past dynamic: "
                    "`bento-kv repair FILE -o REPAIRED --reference SOURCE`.",
                )
            )


def precision_of(opened: Opened) -> Precision:
    """Of weights and cache, the one that decides how close results can come to others."""
    interface = opened.interface
    stored = {pair.past.dtype for pair in interface.caches if pair.past} if interface else set()
    weights = precision(opened.models[-1])
    return coarsest(weights, "int8") if CACHE_ELEMENTS["int8"].dtype in stored else weights

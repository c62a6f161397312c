"""Diagnosis of anybody's decoder and anybody's loop: which layer is wrong, where, and what to do first."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bento_kv.contract.checks import holds
from bento_kv.contract.manifest import Check, versions_of
from bento_kv.contract.reference import NumericReference
from bento_kv.doctor.advice import checklist, todo
from bento_kv.doctor.export.accepted import Acceptance, Sizes
from bento_kv.doctor.export.appended import check_lengths, check_present
from bento_kv.doctor.export.declared import check_declared
from bento_kv.doctor.export.driven import (
    check_cached,
    check_causal,
    check_numbers_are_numbers,
    check_repeatable,
    measure_steps,
)
from bento_kv.doctor.export.loading import Opened, describe, open_decoder_file
from bento_kv.doctor.export.probe import LIMITS, Probe
from bento_kv.doctor.export.rows import check_cached_rows, check_mask, check_rows
from bento_kv.doctor.faults import EXPORT_FAULTS, FAULTS
from bento_kv.doctor.loop.judge import Judgement, judge
from bento_kv.doctor.loop.own_loop import own_trace
from bento_kv.doctor.loop.trace import Trace
from bento_kv.doctor.records import (
    Diagnosis,
    Finding,
    Measurements,
    PartDiagnosis,
    scenario_of,
)
from bento_kv.errors import DecoderError, TraceError
from bento_kv.onnx_file import precision
from bento_kv.runtime.graph import CachedGraph
from bento_kv.runtime.growing import genai_geometry

_PACKAGES = ("onnxruntime", "onnx", "numpy")
# Against torch weights of few bits differ by what the bits leave out, which is not the export's fault.
REFERENCE_LIMITS = {"fp32": 1e-3, "fp16": 2e-2, "int8": 3e-1, "int4": 1.0}

Progress = Callable[[str], None]


@dataclass(slots=True)
class _Export:
    """What is known of the export layer."""

    opened: Opened
    findings: list[Finding] = field(default_factory=list)
    tried: bool = False
    measurements: Measurements = field(default_factory=Measurements)
    vocab_size: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def layer(self) -> PartDiagnosis:
        return PartDiagnosis.of(self.findings, tried=self.tried)


def diagnose(
    target: Path,
    *,
    reference: Callable[[], NumericReference] | None = None,
    reference_name: str | None = None,
    trace: Trace | None = None,
    trace_name: str | None = None,
    pad_token_id: int | None = None,
    threads: int | None = None,
    progress: Progress = lambda _: None,
) -> Diagnosis:
    """Judge both layers of a decoder.

    Args:
        target: an ONNX file, or a directory that has one or a pair.
        reference: makes the model that the decoder was exported from; without it, the decoder is compared with itself.
        reference_name: what the user called it.
        trace: of the loop to be judged; bento_kv's own loop is, where there is none.
        trace_name: what the user called it.
        pad_token_id: fills up shorter rows of the trace.
        threads: of a step.
        progress: told what is being tried.

    Raises:
        DecoderError: the target is no causal decoder, or nothing tells how to drive it.
    """
    began = time.monotonic()
    progress("loading")
    export = _judge_export(target, reference, threads, progress)
    progress("the loop")
    judgement = _judge_loop(export, trace, pad_token_id)
    loop = judgement.diagnosis if judgement else PartDiagnosis(verdict="unknown")
    scenario, plan = scenario_of(export.layer, loop)
    opened = export.opened
    return Diagnosis(
        scenario=scenario,
        plan=plan,
        export=export.layer,
        loop=loop,
        checklist=checklist(export.layer, loop),
        todo=todo(
            scenario,
            export.layer,
            loop,
            target=str(target),
            graph=None if opened.interface and opened.interface.packed else str(opened.files[-1]),
            traced=trace is not None,
            reference=reference_name,
        ),
        target=describe(target, opened).model_copy(update={"trace": trace_name, "reference": reference_name}),
        measurements=export.measurements.model_copy(update={"loop": judgement.strip if judgement else ()}),
        notes=(*export.notes, *(judgement.notes if judgement else ())),
        versions=versions_of(_PACKAGES),
        seconds=round(time.monotonic() - began, 1),
    )


def check_export(directory: Path, threads: int | None) -> list[Check]:
    """The export layer's findings as checks of a proof: each fault that there may be, and how often it is there."""
    findings = _judge_export(directory, None, threads, lambda _: None).findings
    return [
        holds(fault.id, [f"{f.where}: {f.explain}" for f in findings if f.id == fault.id], fault.matter)
        for fault in EXPORT_FAULTS
    ]


def _judge_export(
    target: Path, reference: Callable[[], NumericReference] | None, threads: int | None, progress: Progress
) -> _Export:
    opened = open_decoder_file(target, threads=threads)
    export = _Export(opened, list(opened.findings))
    if opened.interface is None:
        return export
    progress("inputs and outputs")
    export.findings += check_declared(
        opened.interface,
        has_first=opened.one_token_steps,
        packed_inputs=opened.inputs if opened.interface.packed else (),
        configured=genai_geometry(opened.files[0].parent),
    )
    # A cache that cannot be passed on has to be mended before anything can be said of its numbers.
    if opened.graph is None or any(FAULTS[finding.id].blocks for finding in export.findings):
        return export
    progress("sizes")
    export.vocab_size = _vocab_size(opened)
    acceptance = Acceptance(opened.graph, export.vocab_size)
    declared = [f.explain for f in export.findings if f.id == "dynamic-axis-baked"]
    export.findings += _not_yet_said(
        export.findings, acceptance.findings(one_token_steps=opened.one_token_steps, declared=declared)
    )
    progress("steps with a past and without")
    _drive(export, acceptance, reference, progress)
    return export


def _vocab_size(opened: Opened) -> int:
    """Of the logits as declared, or as they come out of a run."""
    declared = opened.interface.logits.shape[-1] if opened.interface else "?"
    if isinstance(declared, int):
        return declared
    for tokens in (7, 3, 2, 1):
        if opened.graph is None:
            break
        try:
            output = opened.graph.run(np.zeros((1, tokens), np.int64), opened.graph.empty_cache(1))
        except DecoderError:
            continue  # another length may do; if none does, the sizes that the graph takes are a finding of their own
        return int(output.logits.shape[-1])
    return 1


def _not_yet_said(known: Sequence[Finding], new: Sequence[Finding]) -> list[Finding]:
    """Findings of a kind that the declared shapes have not shown already: what runs shows there is their consequence."""
    ids = {finding.id for finding in known}
    return [finding for finding in new if finding.id not in ids]


def _drive(
    export: _Export, acceptance: Acceptance, reference: Callable[[], NumericReference] | None, progress: Progress
) -> None:
    """Everything that takes runs. What cannot be run any more has findings that say why, or gets one."""
    opened, interface = export.opened, export.opened.interface
    if opened.graph is None or interface is None:
        return
    names = _present_names(opened)
    try:
        limit = LIMITS[precision(opened.models[-1])]
        one_token = opened.one_token_steps or acceptance.one_token_steps
        if acceptance.one_token_steps and not opened.one_token_steps:
            export.notes.append("behind a past the graph takes one token at a time: no chunked prefill, no speculation")
        probe = Probe(opened.graph, export.vocab_size, limit, chunk=not one_token)
        export.tried = True
        lengths = check_lengths(probe, names)
        if lengths:  # nothing that takes a past can be run on these
            export.findings += lengths
            return
        unusable = check_numbers_are_numbers(probe) or check_repeatable(probe)
        if unusable:
            export.findings += unusable
            return
        export.measurements = Measurements(limit=limit, steps=measure_steps(probe))
        several = all(acceptance.tries(Sizes(n, 7, 0)) and acceptance.tries(Sizes(n, 1, 7)) for n in (2, 3))
        mixed = check_rows(probe) if several else []
        # Each rests on what the one before has shown, so the first that fails is the one to be mended.
        alone = check_present(probe, names) or check_causal(probe) or check_cached(probe, names)
        wrong = [*alone, *mixed]
        if several and not wrong:
            wrong = check_cached_rows(probe) or check_mask(probe)
        # A cause that has a name comes before numbers that differ for no reason found.
        export.findings += sorted(wrong, key=lambda finding: finding.id == "numeric-mismatch")
        if reference is not None:
            progress("against torch")
            export.findings += _against_torch(probe, reference(), export)
    except DecoderError as error:
        if not export.findings:
            export.findings.append(_does_not_run(str(error)))


def _present_names(opened: Opened) -> list[tuple[str, str]]:
    """Of the present outputs, keys' and values' by layer; the second is empty where one tensor has both side by side."""
    names: dict[int, dict[str, str]] = {}
    for pair in opened.interface.caches if opened.interface else ():
        if pair.present is None:
            continue
        sides = names.setdefault(pair.layer, {})
        if pair.side == "both":
            sides["key"], sides["value"] = pair.present.name, pair.present.name if "stack" in pair.axes else ""
        else:
            sides[pair.side] = pair.present.name
    return [(sides.get("key", ""), sides.get("value", "")) for _, sides in sorted(names.items())]


def _against_torch(probe: Probe, reference: NumericReference, export: _Export) -> list[Finding]:
    expected = reference.logits(probe.ids[0].tolist())
    error = probe.error(probe.full.logits[0], expected)
    export.measurements = export.measurements.model_copy(update={"reference": error if np.isfinite(error) else None})
    limit = REFERENCE_LIMITS[precision(export.opened.models[-1])]
    if error <= limit:
        return []
    what = "of another shape" if probe.full.logits[0].shape != expected.shape else f"off by {error:.2g} of the largest"
    return [
        Finding(
            id="numeric-mismatch",
            where="logits, against the reference",
            explain=f"The logits of {probe.ids.shape[1]} tokens are {what}, limit {limit:.0e}: the graph is not that "
            "model, whatever the loop does.",
            fix="Make sure that the reference is what was exported, its revision too; then export again.",
        )
    ]


def _does_not_run(complaint: str) -> Finding:
    return Finding(
        id="dynamic-axis-baked",
        where="the graph",
        explain=f"Steps of a few sizes run, and others do not: {complaint}.",
        fix="Export again with batch, sequence and past dynamic: `bento-kv repair FILE -o REPAIRED --reference SOURCE`.",
    )


def _judge_loop(export: _Export, trace: Trace | None, pad_token_id: int | None) -> Judgement | None:
    """The traced loop, or our own. Numbers count only where the export is right; lengths and tokens always do."""
    graph: CachedGraph | None = export.opened.graph if export.layer.verdict == "right" else None
    if trace is not None:
        _check_trace(trace, export.vocab_size)
        return judge(trace, graph, pad_token_id=pad_token_id)
    if graph is None:
        return None
    return judge(own_trace(export.opened, graph, export.vocab_size), graph)


def _check_trace(trace: Trace, vocab_size: int) -> None:
    """Refuse what cannot be judged.

    Raises:
        TraceError: it has one step, or tokens that this decoder does not have.
    """
    if len(trace.steps) < 2:
        raise TraceError("the trace has one step, which says nothing about the cache: trace three or more")
    for step in trace.steps:
        largest = max(max(row) for row in (*step.input_ids, step.next_token or (0,)))
        if 0 < vocab_size <= largest:
            raise TraceError(
                f"step {step.step} has the token id {largest}, and the decoder has {vocab_size} tokens: "
                "is it the trace of another decoder?"
            )

"""Diagnosis of anybody's decoder and anybody's loop: which of them is wrong, where, and what to do first."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from bento_kv.contract.reference import NumericReference
from bento_kv.contract.versions import versions_of
from bento_kv.doctor.advice import checklist, todo
from bento_kv.doctor.export.judge import judge_export
from bento_kv.doctor.export.judgement import ExportJudgement, Progress
from bento_kv.doctor.export.loading import Opened, open_decoder_file
from bento_kv.doctor.export.target import describe
from bento_kv.doctor.loop.golden import own_trace
from bento_kv.doctor.loop.judge import LoopJudgement, check_trace, judge_loop
from bento_kv.doctor.loop.trace import Trace
from bento_kv.doctor.records import Diagnosis, scenario_of

_PACKAGES = ("onnxruntime", "onnx", "numpy")


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
    """Judge a decoder's export, then the loop that drives it, and say what to do first.

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
        TraceError: the trace says nothing about the cache, or is another decoder's.
    """
    began = time.monotonic()
    progress("loading")
    opened = open_decoder_file(target, threads=threads)
    export = judge_export(opened, reference=reference, progress=progress)
    progress("the loop")
    loop = _judge_loop(opened, export, trace, pad_token_id)
    scenario, plan = scenario_of(export.diagnosis, loop.diagnosis)
    return Diagnosis(
        scenario=scenario,
        plan=plan,
        export=export.diagnosis,
        loop=loop.diagnosis,
        checklist=checklist(export.diagnosis, loop.diagnosis),
        todo=todo(
            scenario,
            export.diagnosis,
            loop.diagnosis,
            target=str(target),
            graph=str(opened.files[-1]) if opened.mendable else None,
            traced=trace is not None,
            reference=reference_name,
        ),
        target=describe(target, opened).model_copy(update={"trace": trace_name, "reference": reference_name}),
        measurements=export.measurements.model_copy(update={"loop": loop.steps}),
        notes=(*export.notes, *loop.notes),
        versions=versions_of(_PACKAGES),
        seconds=round(time.monotonic() - began, 1),
    )


def check_export(target: Path, *, threads: int | None = None) -> ExportJudgement:
    """Judge a decoder's export alone, by the decoder itself: what whoever makes or mends a graph asks.

    Nothing is kept between calls, so that a file may be written anew and asked about again; a tiny graph takes a
    fraction of a second.

    Args:
        target: an ONNX file, or a directory that has one or a pair.
        threads: of a step.

    Returns:
        Its verdict is `right`, `wrong` with findings, or `unknown` where nothing could be tried.

    Raises:
        DecoderError: the target is no causal decoder, or nothing tells how to drive it.
    """
    return judge_export(open_decoder_file(target, threads=threads))


def _judge_loop(
    opened: Opened, export: ExportJudgement, trace: Trace | None, pad_token_id: int | None
) -> LoopJudgement:
    """The traced loop, or our own. Numbers count only where the export is right; lengths and tokens always do."""
    graph = opened.graph if export.diagnosis.verdict == "right" and export.stepped else None
    if trace is not None:
        check_trace(trace, export.vocab_size)
        return judge_loop(trace, graph, pad_token_id=pad_token_id)
    if graph is None:
        return LoopJudgement()
    return judge_loop(own_trace(graph, export.vocab_size, opened.in_place_directory), graph)

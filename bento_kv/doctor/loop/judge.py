"""Judges the loop of any program from its step trace.

Structure first: lengths and token ids alone tell the classic faults apart. Then the fields that the trace has beside
them. Then, where a decoder is given whose export is right, its numbers: they find what the lengths do not show, and take
back what those only seem to show.
"""

from __future__ import annotations

from dataclasses import dataclass

from bento_kv.doctor.loop.alone import Alone, padding_of
from bento_kv.doctor.loop.fields import judge_fields
from bento_kv.doctor.loop.overruled import overrule
from bento_kv.doctor.loop.padded import judge_right_padding
from bento_kv.doctor.loop.structure import Structure, judge_structure
from bento_kv.doctor.loop.trace import Trace
from bento_kv.doctor.loop.values import judge_values
from bento_kv.doctor.loop.walk import RIGHT, Walked
from bento_kv.doctor.records import Finding, LoopStep, PartDiagnosis
from bento_kv.errors import TraceError
from bento_kv.runtime.graph import CachedGraph


@dataclass(frozen=True, slots=True)
class LoopJudgement:
    """What a trace says of its loop; nothing, of a loop that was not judged.

    Attributes:
        findings: in order of their steps.
        steps: every step beside what it should have been.
        first_wrong: the step of the first finding.
        notes: what was taken for granted, left out, or would sharpen the verdict.
        compared: steps whose numbers were compared with the golden loop; 0 without a decoder.
    """

    findings: tuple[Finding, ...] = ()
    steps: tuple[LoopStep, ...] = ()
    first_wrong: int | None = None
    notes: tuple[str, ...] = ()
    compared: int = 0

    @property
    def diagnosis(self) -> PartDiagnosis:
        """Unknown where the trace has one step: no cache was fed."""
        return PartDiagnosis.of(list(self.findings), tried=len(self.steps) > 1)


def judge_loop(trace: Trace, graph: CachedGraph | None, *, pad_token_id: int | None = None) -> LoopJudgement:
    """Name the first wrong step and its cause.

    Args:
        graph: the decoder that the trace was made with; None if its export is not right, then numbers are not compared.
        pad_token_id: what shorter rows of a batch begin with, if the trace has no `position_ids`.

    Raises:
        DecoderError: the graph does not run the tokens of the trace.
    """
    structure = judge_structure(trace)
    padding = padding_of(trace, pad_token_id)
    judge_fields(trace, structure, padding.pads, pad_token_id)
    compared = 0
    if len(trace.steps) < 2:
        structure.notes.append("one step says nothing about the cache: trace three or more")
    elif graph is None and not structure.findings:
        structure.notes.append("only lengths and ids were judged: numbers need a decoder whose export is right")
    elif graph is not None:
        alone = Alone(graph, trace, structure, padding, pad_token_id)
        if structure.placing and judge_right_padding(trace, structure, graph, alone, told=pad_token_id is not None):
            compared = len(trace.steps)
        elif structure.findings:
            compared = overrule(trace, structure, graph, alone)
        else:
            compared = judge_values(trace, structure, graph, alone, padding, pad_token_id)
    found = sorted(structure.findings, key=lambda entry: entry[0])
    return LoopJudgement(
        findings=tuple(finding for _, finding in found),
        steps=tuple(_loop_step(walked, structure) for walked in structure.walked),
        first_wrong=found[0][0] if found else None,
        notes=(*trace.notes, *structure.notes),
        compared=compared,
    )


def check_trace(trace: Trace, vocab_size: int) -> None:
    """Refuse what cannot be judged.

    Args:
        vocab_size: of the decoder; 0 where it is not known.

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


def _loop_step(walked: Walked, structure: Structure) -> LoopStep:
    step = walked.step
    ids = [finding.id for at, finding in structure.findings if at == step.step]
    if not ids and (not walked.as_expected or walked.kind not in RIGHT):
        # What follows from the fault before.
        ids = [finding.id for at, finding in structure.findings if at < step.step][-1:]
    positions = step.position_ids
    return LoopStep(
        step=step.step,
        input_ids=(step.rows, step.width),
        past_length=step.past_length,
        present_length=step.present_length,
        attention_mask_length=step.attention_mask_length,
        position_ids=None if positions is None else (positions[0][0], positions[0][-1]),
        expected_tokens=walked.expected_tokens,
        expected_past_length=walked.expected_past,
        findings=tuple(ids),
    )

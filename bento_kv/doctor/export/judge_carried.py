"""Judges the export of a decoder whose cache cannot be looked into; what cannot be told is said, and nobody blamed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bento_kv.contract.precision import PRECISIONS, Precision
from bento_kv.contract.reference import NumericReference
from bento_kv.doctor.export.carried import Steps, check_carried, chunks_agree, measured, misplaced
from bento_kv.doctor.export.far import affordable
from bento_kv.doctor.export.judgement import ExportJudgement, Progress
from bento_kv.doctor.export.length import Declared, declared_length
from bento_kv.doctor.export.loading import Opened
from bento_kv.doctor.export.probe import LENGTH, REEXPORT, made_up
from bento_kv.doctor.records import Finding, Measurements, PartDiagnosis, Reach, StepError
from bento_kv.errors import DecoderError, GraphLimitError
from bento_kv.onnx_file import weight_count
from bento_kv.runtime.carried import CarriedGraph, MaskSpan

_LAST = 4  # single steps at the end of a long prompt
_SPANS: dict[MaskSpan, str] = {
    "capacity": "whole static cache",
    "total": "tokens until now",
    "kept": "positions kept and the new tokens",
    "tokens": "new tokens",
}
_PADDING = "rows of unequal length, padded"


def judge_carried(
    opened: Opened,
    graph: CarriedGraph,
    precision: Precision,
    reference: Callable[[], NumericReference] | None,
    progress: Progress,
) -> ExportJudgement:
    """The decoder by its steps alone.

    Args:
        opened: the decoder.
        graph: its graph.
        precision: that decides how close results can come.
        reference: makes the model that it was exported from; None compares the decoder with itself.
        progress: told what is being tried.

    Raises:
        DecoderError: no step runs in any way that is known, or there is nothing to compare a step with.
    """
    progress("steps cut in several ways")
    what = opened.interface.foreign if opened.interface else ""
    traits = PRECISIONS[precision]
    steps, findings = _settle(graph, what, traits.self_consistency)
    notes = [_note(steps.graph, what)]
    error = None
    if steps.one_token and reference is None:
        raise DecoderError(
            f"the graph has {what or 'a cache that slides'}, and takes one token a step: there is nothing that a step "
            "could be compared with. Give the model that it was exported from as --reference"
        )
    if not findings and not steps.one_token and not chunks_agree(steps):
        notes.append("behind others it takes one token at a time: no chunked prefill, no speculation")
    reach = Reach()
    if not findings:
        progress("far along")
        model = reference() if reference is not None else None
        declared = declared_length(opened.folder, model)
        if graph.capacity is not None:
            declared = Declared(graph.capacity, "the static cache", graph.capacity)
        far = _Far(steps, declared, model, traits.against_reference)
        findings = far.look(0 if precision == "int8" else weight_count(opened.models[-1]))
        error, reach = far.error, far.reach()
    return ExportJudgement(
        PartDiagnosis.of(findings),
        Measurements(limit=steps.limit, steps=_measured(steps), reference=error, reach=reach if not findings else None),
        tuple(notes),
        steps.vocab_size,
        stepped=False,
    )


def _settle(graph: CarriedGraph, what: str, limit: float) -> tuple[Steps, list[Finding]]:
    """The layout of the mask by which all is right; else the first by which it runs, and what is wrong then."""
    complaints, first = [], None
    for laid_out in graph.spans():
        try:
            steps = Steps(laid_out, _vocab_size(laid_out), limit)
            findings = [] if steps.one_token else check_carried(steps)
        except DecoderError as error:
            complaints.append(f"a mask over the {_SPANS[laid_out.span]}: {error}")
            continue
        if not findings:
            return steps, []
        first = first or (steps, findings)
    if first is None:
        raise DecoderError(f"the graph has {what}, and no step runs; tried {'; '.join(complaints)}. It is not judged")
    return first


def _vocab_size(graph: CarriedGraph) -> int:
    declared = graph.interface.logits.shape[-1]
    if isinstance(declared, int):
        return declared
    rows = graph.rows or 1
    return int(graph.run(np.zeros((rows, 1), np.int64), graph.empty(rows))[0].shape[-1])


def _measured(steps: Steps) -> tuple[StepError, ...]:
    try:
        return () if steps.one_token else measured(steps)
    except DecoderError:
        return ()  # the findings say why


def _note(graph: CarriedGraph, what: str) -> str:
    kind = what or "a cache that keeps its last positions only"
    mask = f", with a mask over the {_SPANS[graph.span]}" if graph.interface.mask is not None else ""
    return (
        f"the graph has {kind}: judged by what its steps give, cut in several ways{mask}; "
        "of a loop only lengths and ids can be judged, and bento_kv does not serve it"
    )


@dataclass(slots=True)
class _Far:
    """The same along a longer prompt, and against the model that it was exported from."""

    steps: Steps
    declared: Declared | None
    model: NumericReference | None
    limit: float
    error: float | None = None
    length: int = LENGTH
    left: list[str] = field(default_factory=lambda: [_PADDING])

    def look(self, weights: int) -> list[Finding]:
        """What is wrong with a prompt as long as the budget allows; of no weights, with the short one alone."""
        steps = self.steps
        room = self.declared.length if self.declared else None
        longest = affordable(weights, steps.vocab_size, room) if weights and not steps.one_token else 0
        while True:
            self.length = max(longest, steps.ids.shape[1])
            ids = made_up(4, steps.vocab_size, steps.rows, self.length) if longest else steps.ids
            sizes = [1] * self.length if steps.one_token else [self.length - _LAST, *[1] * _LAST]
            try:
                got, _ = steps.chain(ids, sizes)
                whole = got if steps.one_token else steps.chain(ids, [self.length])[0]
                break
            except DecoderError as error:
                if self.declared or not longest:
                    return misplaced(steps) or [_does_not_run(self.length, error)]
            except GraphLimitError:
                if not longest:
                    raise
                self.left.append(f"prompts of {self.length} tokens, for which time or memory is not enough")
            longest = longest // 2 if longest // 2 > steps.ids.shape[1] else 0
        apart = steps.error(got[:, -1], whole[:, -1])
        if not apart <= steps.limit:
            return [_mismatch(f"the last of {self.length} tokens", f"is off by {apart:.2g} behind a cache")]
        return [] if self.model is None else self._against(self.model, ids, got)

    def _against(self, model: NumericReference, ids: NDArray[np.int64], got: NDArray[np.float32]) -> list[Finding]:
        expected = model.logits(ids[0].tolist(), at=range(self.length - got.shape[1], self.length))
        error = self.steps.error(got[0], expected)
        self.error = float(error) if np.isfinite(error) else None
        if error <= self.limit:
            return []
        return [
            _mismatch(f"the last {got.shape[1]} logits of {self.length} tokens", f"are off by {error:.2g} of torch's")
        ]

    def reach(self) -> Reach:
        """What was looked at."""
        cut_up = f"{LENGTH} tokens in steps of several kinds; a prompt of {self.length} tokens, at once and in steps"
        alone = "single steps" if self.steps.one_token else cut_up
        left = list(self.left)
        if self.declared and self.declared.length > self.length:
            left.append(f"the {self.declared.length - self.length} positions beyond")
        if self.model is None:
            left.append("what is wrong in the same way with a cache and without, which --reference shows")
        return Reach(
            declared=self.declared.length if self.declared else None,
            declared_by=self.declared.source if self.declared else "",
            positions=self.length,
            looked=(alone, *(["the same against the reference"] if self.model else [])),
            left=tuple(left),
        )


def _does_not_run(length: int, error: DecoderError) -> Finding:
    return Finding(
        id="dynamic-axis-baked",
        where=f"a prompt of {length} tokens",
        axis="sequence",
        explain=f"Short prompts run, and one of {length} tokens does not, at once or in steps: {error}.",
        fix=REEXPORT,
    )


def _mismatch(where: str, what: str) -> Finding:
    text = f"Near the first position all is right, and {where} {what}."
    return Finding(id="numeric-mismatch", where=where, explain=text, fix=REEXPORT)

"""What a diagnosis says: of export and loop a verdict and its findings each, and from both the scenario and the plan.

The two are judged one by one because they fail independently. A finding names its place, what it does to whoever uses the
decoder, and what to do about it.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field

from bento_kv.contract.record import Record
from bento_kv.doctor.faults import FaultId, ItemId, LoopFaultId, Part

Verdict = Literal["right", "wrong", "unknown"]
Scenario = Literal["A", "B", "C", "D"]
# `step` is any of those that a packed step has besides.
GraphAxis = Literal["batch", "sequence", "past", "step"]
ItemState = Literal["done", "wrong", "unknown"]

# Scenario and plan from (export is wrong, loop is wrong). Plan 2 mends the export, plan 1 the loop; the export is
# always first, because a loop cannot be judged on wrong numbers.
_SCENARIOS: dict[tuple[bool, bool], tuple[Scenario, tuple[int, ...]]] = {
    (False, True): ("A", (1,)),
    (True, True): ("B", (2, 1)),
    (False, False): ("C", ()),
    (True, False): ("D", (2,)),
}


class Finding(Record):
    """One fault. `where` names the node, the tensor and axis, or the step; `axis` the one that is fixed, if one is."""

    id: FaultId
    where: str
    axis: GraphAxis | None = None
    explain: str
    fix: str


class PartDiagnosis(Record):
    """The verdict on export or loop: `unknown` where nothing was found because it could not be tried."""

    verdict: Verdict
    findings: tuple[Finding, ...] = ()

    @classmethod
    def of(cls, findings: list[Finding], *, tried: bool = True) -> Self:
        """Wrong if anything was found, else right if it was tried at all."""
        return cls(verdict="wrong" if findings else "right" if tried else "unknown", findings=tuple(findings))


class Item(Record):
    """A line of the checklist."""

    id: ItemId
    text: str
    state: ItemState


class LoopStep(Record):
    """What went into a step and came out of it: the golden loop's, or a traced one's beside what it should have been.

    Lengths are positions; None where a trace does not say.
    """

    step: int
    input_ids: tuple[int, int]  # rows, tokens
    past_length: int
    present_length: int | None = None
    attention_mask_length: int | None = None
    position_ids: tuple[int, int] | None = None  # the first row's first and last
    expected_tokens: int
    expected_past_length: int
    findings: tuple[LoopFaultId, ...] = ()


class StepError(Record):
    """One cached step against the same tokens uncached: largest error over the largest value, logits and by layer."""

    step: int
    tokens: int
    past_length: int
    logits: float | None
    keys: tuple[float | None, ...]
    values: tuple[float | None, ...]


class Reach(Record):
    """How far along the sequence a decoder was looked at, and by what."""

    declared: int | None = None  # positions that there are; None where nothing says
    declared_by: str = ""
    positions: int = 0  # the numbers of the last of so many were compared
    looked: tuple[str, ...] = ()  # at what, a phrase each
    left: tuple[str, ...] = ()  # what was not looked at, and why

    @property
    def extent(self) -> str:
        """`256 of 512 declared`."""
        return (
            f"{self.positions} of {self.declared} declared"
            if self.declared
            else f"{self.positions} (no length is declared)"
        )

    @property
    def sentence(self) -> str:
        """What was and what was not looked at."""
        by = f" ({self.declared_by})" if self.declared_by else ""
        rest = f"; not looked at: {'; '.join(self.left)}" if self.left else ""
        return sentence(f"looked at positions up to {self.extent}{by}: {'; '.join(self.looked) or 'nothing'}{rest}")


class Measurements(Record):
    """Numbers behind the verdicts; `limit` is what an error may be at most. Empty where nothing could be run."""

    limit: float | None = None
    steps: tuple[StepError, ...] = ()
    reference: float | None = None  # largest error of the logits against torch, where a reference was given
    loop: tuple[LoopStep, ...] = ()
    reach: Reach | None = None


class Target(Record):
    """What was diagnosed."""

    path: str
    graphs: tuple[str, ...]
    layout: str
    cache: str = ""  # of one layer, in words: "[batch, 2 heads, time, 16]"
    layers: int = 0
    precision: str = ""
    opset: dict[str, int] = Field(default_factory=dict)
    ir_version: int | None = None
    trace: str | None = None
    reference: str | None = None


class Diagnosis(Record):
    """The answer of `doctor`: whether export or loop is wrong, and what to do first."""

    schema_: Literal["bento_kv.diagnosis/1"] = Field("bento_kv.diagnosis/1", alias="schema")
    scenario: Scenario
    plan: tuple[int, ...]
    export: PartDiagnosis
    loop: PartDiagnosis
    checklist: tuple[Item, ...]
    todo: tuple[str, ...]  # in order, a sentence or a command each
    notes: tuple[str, ...] = ()  # what was taken for granted or left out
    target: Target
    measurements: Measurements
    versions: dict[str, str]
    seconds: float

    @property
    def parts(self) -> dict[Part, PartDiagnosis]:
        """Export and loop, the one to be mended first before the other."""
        return {"export": self.export, "loop": self.loop}


def scenario_of(export: PartDiagnosis, loop: PartDiagnosis) -> tuple[Scenario, tuple[int, ...]]:
    """The scenario and its plan; what could not be tried is not called wrong."""
    return _SCENARIOS[export.verdict == "wrong", loop.verdict == "wrong"]


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    text = text[:1].upper() + text[1:].rstrip(".")
    return text if text.endswith(("?", "!")) else text + "."

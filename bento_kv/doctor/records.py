"""What a diagnosis says: per layer a verdict and its findings, and from both the scenario and the plan.

The layers are judged apart because they fail apart. A finding names its place, what it does to whoever uses the
decoder, and what to do about it.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

Layer = Literal["export", "loop"]
Verdict = Literal["right", "wrong", "unknown"]
Scenario = Literal["A", "B", "C", "D"]
State = Literal["done", "wrong", "unknown"]

# Why each id exists, in a line: what is the matter. A finding's own `explain` has the numbers and names.
EXPORT_FAULTS: dict[str, str] = {
    "ir-version-unsupported": "the file's IR version is newer than the installed runtime takes",
    "opset-unsupported": "the graph is written in an operator set that the installed runtime does not have",
    "load-failed": "the runtime does not load the graph",
    "external-data-missing": "the weights file beside the graph is missing or too short",
    "no-cache-io": "the graph has no cache inputs or no cache outputs",
    "past-present-unpaired": "a past input has no present output that continues it, or another layer's does",
    "kv-shape-mismatch": "past and present, or the graph and its configuration, differ in heads or head size",
    "dtype-mismatch": "past and present differ in their element type, so present cannot be fed back",
    "dynamic-axis-baked": "an axis that has to vary was fixed at the size it had when the graph was traced",
    "zero-length-past-rejected": "the graph does not take an empty past, so step 0 needs another graph",
    "present-not-appended": "present is not the past with the new keys and values behind it",
    "past-ignored": "the logits do not depend on the past",
    "position-ignores-past": "positions start at 0 in each step instead of behind the past",
    "mask-ignores-past": "the attention mask does not cover the past as it should",
    "batch-rows-mixed": "a row's logits depend on the rows beside it",
    "nan": "logits or cache contain values that are not numbers",
    "numeric-mismatch": "the numbers differ from those that they have to equal",
}
LOOP_FAULTS: dict[str, str] = {
    "step0-cache-not-extracted": "the cache that step 0 computed was not taken",
    "past-not-fed": "the cache was taken, but not fed to the next step",
    "past-stale": "the cache fed is not the one that the step before returned",
    "input-ids-not-truncated": "after step 0 the whole sequence is fed instead of the new token",
    "position-not-advanced": "position ids do not continue behind the past",
    "mask-too-short": "the attention mask does not span past and new tokens",
    "layers-swapped": "the cache of one layer or side is fed to another",
    "tokens-diverge": "the steps look right, and the tokens are not those of the golden loop",
}

# Scenario and plan from (export is wrong, loop is wrong). Plan 2 mends the export, plan 1 the loop; the export is
# always first, because a loop cannot be judged on wrong numbers.
_SCENARIOS: dict[tuple[bool, bool], tuple[Scenario, tuple[int, ...]]] = {
    (False, True): ("A", (1,)),
    (True, True): ("B", (2, 1)),
    (False, False): ("C", ()),
    (True, False): ("D", (2,)),
}


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Finding(_Record):
    """One fault. `where` names the node, the tensor and axis, or the step."""

    id: str
    where: str
    explain: str
    fix: str


class LayerDiagnosis(_Record):
    """A layer's verdict: `unknown` where nothing was found because it could not be tried."""

    verdict: Verdict
    findings: tuple[Finding, ...] = ()

    @classmethod
    def of(cls, findings: list[Finding], *, tried: bool = True) -> Self:
        """Wrong if anything was found, else right if the layer was tried at all."""
        return cls(verdict="wrong" if findings else "right" if tried else "unknown", findings=tuple(findings))


class Item(_Record):
    """A line of the checklist."""

    id: str
    text: str
    state: State


class LoopStep(_Record):
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
    findings: tuple[str, ...] = ()


class StepError(_Record):
    """One cached step against the same tokens uncached: largest error over the largest value, logits and by layer."""

    step: int
    tokens: int
    past_length: int
    logits: float | None
    keys: tuple[float | None, ...]
    values: tuple[float | None, ...]


class Measurements(_Record):
    """Numbers behind the verdicts; `limit` is what an error may be at most. Empty where nothing could be run."""

    limit: float | None = None
    steps: tuple[StepError, ...] = ()
    reference: float | None = None  # largest error of the logits against torch, where a reference was given
    loop: tuple[LoopStep, ...] = ()


class Target(_Record):
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


class Diagnosis(_Record):
    """The answer of `doctor`: which layer is wrong, and what to do first."""

    schema_: Literal["bento_kv.diagnosis/1"] = Field("bento_kv.diagnosis/1", alias="schema")
    scenario: Scenario
    plan: tuple[int, ...]
    export: LayerDiagnosis
    loop: LayerDiagnosis
    checklist: tuple[Item, ...]
    todo: tuple[str, ...]  # in order, a sentence or a command each
    notes: tuple[str, ...] = ()  # what was taken for granted or left out
    target: Target
    measurements: Measurements
    versions: dict[str, str]
    seconds: float


def scenario_of(export: LayerDiagnosis, loop: LayerDiagnosis) -> tuple[Scenario, tuple[int, ...]]:
    """The scenario and its plan; a layer that could not be tried is not called wrong."""
    return _SCENARIOS[export.verdict == "wrong", loop.verdict == "wrong"]


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    return text[:1].upper() + text[1:].rstrip(".") + "."

"""Every fault that the doctor names, a row an id: what is the matter, where it comes from, and what it speaks against.

Ids are stable: they stand in JSON records, on pages and in the proof of a growing decoder. A finding has the numbers and
names of one case; what is true of every case of a fault stands here, and texts, pages and docs derive from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

# What fails independently: the graph, and the program that feeds it.
Part = Literal["export", "loop"]

ExportFaultId = Literal[
    "ir-version-unsupported",
    "opset-unsupported",
    "load-failed",
    "external-data-missing",
    "no-cache-io",
    "past-present-unpaired",
    "kv-shape-mismatch",
    "dtype-mismatch",
    "dynamic-axis-baked",
    "zero-length-past-rejected",
    "present-not-appended",
    "past-ignored",
    "position-ignores-past",
    "mask-ignores-past",
    "batch-rows-mixed",
    "nan",
    "logits-constant",
    "numeric-mismatch",
]
LoopFaultId = Literal[
    "step0-cache-not-extracted",
    "past-not-fed",
    "past-stale",
    "input-ids-not-truncated",
    "position-not-advanced",
    "mask-too-short",
    "layers-swapped",
    "tokens-diverge",
]
FaultId = ExportFaultId | LoopFaultId

ItemId = Literal["export", "cache-taken", "cache-passed-on", "input-ids-shape", "positions-and-mask", "whole"]
# What has to be right, in the order in which it is looked at.
CHECKLIST: Mapping[ItemId, str] = {
    "export": "The graph takes a past and returns it grown",
    "cache-taken": "The cache is taken at step 0",
    "cache-passed-on": "It is passed on, each step's to the next",
    "input-ids-shape": "input_ids has the right shape at every step",
    "positions-and-mask": "Positions and mask go on behind the past",
    "whole": "Export and loop together give the tokens that they should",
}

# What a picture of a step can hold against what it should have been, beside the tokens and the past of every wrong step.
StepField = Literal["mask", "positions"]


@dataclass(frozen=True, slots=True)
class Fault:
    """What is true of every case of one fault.

    Attributes:
        id: as records and pages have it.
        part: that is wrong, and has to be mended.
        matter: what is the matter, to be read behind the id and a colon.
        cause: how it usually comes about.
        remedy: what mends it, as an imperative; a finding may know better.
        items: of the checklist, that are not done while it is there.
        shows: the field of a step that its picture compares, for faults of that field.
        blocks: nothing that takes a past can be run, or its numbers say nothing, before it is mended.
    """

    id: FaultId
    part: Part
    matter: str
    cause: str
    remedy: str
    items: tuple[ItemId, ...]
    shows: StepField | None = None
    blocks: bool = False


def _export(id: ExportFaultId, matter: str, *, cause: str, remedy: str, blocks: bool = False) -> Fault:
    return Fault(id, "export", matter, cause, remedy, ("export",), blocks=blocks)


def _loop(
    id: LoopFaultId, matter: str, *items: ItemId, cause: str, remedy: str, shows: StepField | None = None
) -> Fault:
    return Fault(id, "loop", matter, cause, remedy, items, shows)


_ROWS = (
    _export(
        "ir-version-unsupported",
        "the file's IR version is newer than the installed runtime takes",
        cause="the file was written by an onnx package that is newer than the runtime",
        remedy="lower the IR version with `bento-kv repair`, or install a newer onnxruntime",
        blocks=True,
    ),
    _export(
        "opset-unsupported",
        "the graph is written in an operator set that the installed runtime does not have",
        cause="the exporter was asked for the newest opset, or has it as its default",
        remedy="convert it with `bento-kv repair`, export with a lower opset, or install a newer onnxruntime",
        blocks=True,
    ),
    _export(
        "load-failed",
        "the runtime does not load the graph",
        cause="an operator or a type that the execution provider does not have, or a file that was cut off",
        remedy="export again for this runtime and its CPU provider, or copy the file again",
        blocks=True,
    ),
    _export(
        "external-data-missing",
        "the weights file beside the graph is missing or too short",
        cause="the .onnx file was copied or renamed without its weights",
        remedy="put the weights file beside the graph, whole and under the name that the graph has for it",
        blocks=True,
    ),
    _export(
        "no-cache-io",
        "the graph has no cache inputs or no cache outputs",
        cause="the model was exported with use_cache=False, or as a plain forward pass",
        remedy="export it with its cache",
        blocks=True,
    ),
    _export(
        "past-present-unpaired",
        "a past input has no present output that continues it, or another layer's does",
        cause="names given by a list whose order is not the graph's",
        remedy="give each layer's keys and values a past input and a present output; `bento-kv repair` pairs them",
        blocks=True,
    ),
    _export(
        "kv-shape-mismatch",
        "past and present, or the graph and its configuration, differ in heads or head size",
        cause="keys returned after they were repeated for the query heads, or a head size taken from hidden_size / heads",
        remedy="export again with the key and value heads and the head size of the model's configuration",
        blocks=True,
    ),
    _export(
        "dtype-mismatch",
        "past and present differ in their element type, so present cannot be fed back",
        cause="a conversion to half precision that left inputs or outputs out",
        remedy="cast inside the graph, or export again with one type for the cache",
        blocks=True,
    ),
    _export(
        "dynamic-axis-baked",
        "an axis that has to vary was fixed at the size it had when the graph was traced",
        cause="dynamic_axes or dynamic_shapes without it, or an example of size 0 or 1, which tracing takes for a constant",
        remedy="export again with batch, sequence and past dynamic; `bento-kv repair` restores what was only declared",
    ),
    _export(
        "zero-length-past-rejected",
        "the graph does not take an empty past, so step 0 needs another graph",
        cause="a Reshape or a mask that was made for a past of the example's length",
        remedy="export again from an example with a past of dynamic length, or a second graph for step 0",
    ),
    _export(
        "present-not-appended",
        "present is not the past with the new keys and values behind it",
        cause="the new keys and values are returned alone, or before the past",
        remedy="return past and new keys and values joined along the time axis, from every layer",
    ),
    _export(
        "past-ignored",
        "the logits do not depend on the past",
        cause="the past is joined to what is returned, and not to what attention reads",
        remedy="join the past to the new keys and values before attention, in every layer",
    ),
    _export(
        "position-ignores-past",
        "positions start at 0 in each step instead of behind the past",
        cause="positions computed as arange(tokens) inside the graph, or an input position_ids that nothing reads",
        remedy="derive positions from the length of the past, or use the input position_ids as it is",
    ),
    _export(
        "mask-ignores-past",
        "the attention mask does not cover the past as it should",
        cause="a causal mask laid out for the new tokens alone, or traced at one size",
        remedy="shift the causal mask by the length of the past, and apply attention_mask to past and new positions",
    ),
    _export(
        "batch-rows-mixed",
        "a row's logits depend on the rows beside it",
        cause="a Reshape that joins batch with another axis, a mask made for one row, a scale that all rows share",
        remedy="keep the batch axis apart from all others, and export again",
    ),
    _export(
        "nan",
        "logits or cache contain values that are not numbers",
        cause="sums or a softmax that overflow in half precision, or a row that is masked whole",
        remedy="keep sums and softmax in fp32, or export in fp32",
    ),
    _export(
        "logits-constant",
        "the logits are the same whatever tokens are fed",
        cause="weights that were lost or left as zeros, a head that reads another tensor, or an output that was folded to a "
        "constant",
        remedy="check the weights of the model that is exported, and that its logits vary there; then export again",
    ),
    _export(
        "numeric-mismatch",
        "the numbers differ from those that they have to equal",
        cause="dropout that was traced, a causal mask that was lost, or a reference that is another model",
        remedy="put the model into evaluation mode and export it again",
    ),
    _loop(
        "step0-cache-not-extracted",
        "the cache that step 0 computed was not taken",
        "cache-taken",
        "cache-passed-on",
        cause="the first step runs through other code that drops `present`",
        remedy="take the present outputs of step 0 too, and feed them as the past of step 1",
    ),
    _loop(
        "past-not-fed",
        "the cache was taken, but not fed to the next step",
        "cache-passed-on",
        cause="the past is made anew in each step",
        remedy="feed the present outputs of each step as the past of the next one",
    ),
    _loop(
        "past-stale",
        "the cache fed is not the one that the step before returned",
        "cache-passed-on",
        cause="the outputs are bound once, or copied too late; rejected drafts are kept",
        remedy="feed the present outputs of the step before, as long as they are, and nothing older or longer",
    ),
    _loop(
        "input-ids-not-truncated",
        "after step 0 the whole sequence is fed instead of the new token",
        "input-ids-shape",
        cause="`input_ids` is appended to, and fed whole",
        remedy="from step 1 on feed only the tokens that the cache does not hold, `[rows, 1]` in decoding",
    ),
    _loop(
        "position-not-advanced",
        "position ids do not continue behind the past",
        "positions-and-mask",
        cause="`arange(tokens)` instead of past length + `arange(tokens)`; padding counted",
        remedy="set `position_ids` of each step to past length, past length + 1, ... (less the padding of each row)",
        shows="positions",
    ),
    _loop(
        "mask-too-short",
        "the attention mask does not span past and new tokens",
        "positions-and-mask",
        cause="the mask is made from `input_ids`",
        remedy="make `attention_mask` [rows, past length + tokens] at every step, with ones but for the padding",
        shows="mask",
    ),
    _loop(
        "layers-swapped",
        "the cache of one layer or side is fed to another",
        "cache-passed-on",
        cause="outputs matched to inputs by order, or by names sorted as text",
        remedy="pair outputs and inputs by their names: present.N.key is the next step's past key of layer N",
    ),
    _loop(
        "tokens-diverge",
        "the steps look right, and the tokens are not those of the golden loop",
        "whole",
        cause="logits of another position, the wrong token fed, sampling without `logits_top`",
        remedy="feed the token that was chosen from the step before",
    ),
)
FAULTS: Mapping[FaultId, Fault] = {fault.id: fault for fault in _ROWS}
EXPORT_FAULTS = tuple(fault for fault in _ROWS if fault.part == "export")
LOOP_FAULTS = tuple(fault for fault in _ROWS if fault.part == "loop")

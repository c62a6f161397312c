"""Diagnoses built by hand, one a scenario and one an awkward case."""

from __future__ import annotations

from bento_kv.doctor.faults import LoopFaultId
from bento_kv.doctor.records import (
    Diagnosis,
    Finding,
    Item,
    ItemState,
    LoopStep,
    Measurements,
    PartDiagnosis,
    Reach,
    StepError,
    Target,
    scenario_of,
)

LIMIT = 1e-5
BAKED = Finding(
    id="dynamic-axis-baked",
    where="input past_key_values.0.key, axis 2",
    explain="The axis is fixed at 5, the length of the past when the graph was traced: a past of any other length is "
    "refused, so the second cached step fails.",
    fix="Name the axis: bento-kv repair does it where the graph beneath supports it, else export again.",
)
NOT_EXTRACTED = Finding(
    id="step0-cache-not-extracted",
    where="step 0",
    explain="present has 5 positions after step 0, and step 1 was fed 0 of them.",
    fix="Keep every present.* output of step 0, and hand it to step 1 as past_key_values.*.",
)
NOT_TRUNCATED = Finding(
    id="input-ids-not-truncated",
    where="step 1",
    explain="6 tokens were fed where 1 is new: each step costs as much as the whole sequence, and grows.",
    fix="From step 1 on, feed the last token only, as [1, 1].",
)
UNLOADED = Finding(
    id="load-failed", where="model.onnx", explain="Protobuf parsing failed.", fix="Write the file again."
)


def golden(count: int, prompt: int = 5) -> tuple[LoopStep, ...]:
    """The steps of a right loop: the prompt, then a token at a time behind what is cached."""
    return tuple(_step(step, prompt if step == 0 else 1, step and prompt + step - 1) for step in range(count))


def faulty(count: int, prompt: int = 5, *, since: int = 1) -> tuple[LoopStep, ...]:
    """From step `since` on the cache stays empty and the whole sequence is fed."""
    found: tuple[LoopFaultId, ...] = ("step0-cache-not-extracted", "input-ids-not-truncated")
    return tuple(
        right
        if right.step < since
        else _step(right.step, prompt + right.step, 0).model_copy(
            update={"expected_tokens": 1, "expected_past_length": right.past_length, "findings": found}
        )
        for right in golden(count, prompt)
    )


def _step(step: int, tokens: int, past: int) -> LoopStep:
    return LoopStep(
        step=step,
        input_ids=(1, tokens),
        past_length=past,
        present_length=past + tokens,
        attention_mask_length=past + tokens,
        position_ids=(past, past + tokens - 1),
        expected_tokens=tokens,
        expected_past_length=past,
    )


def errors(count: int, layers: int, *, broken_from: int | None = None) -> tuple[StepError, ...]:
    """Errors near 1e-7; from a step on they grow with the layer, to far beyond the limit."""

    def error(step: int, layer: int, phase: int) -> float:
        small = (1 + (step * 7 + layer * 3 + phase) % 9) * 4e-8
        return small if broken_from is None or step < broken_from else small * 10 ** (1 + 4 * (layer + 1) / layers)

    return tuple(
        StepError(
            step=step,
            tokens=5 if step == 0 else 1,
            past_length=step and step + 4,
            logits=error(step, layers, 0),
            keys=tuple(error(step, layer, 1) for layer in range(layers)),
            values=tuple(error(step, layer, 2) for layer in range(layers)),
        )
        for step in range(count)
    )


def diagnosis(
    export: PartDiagnosis,
    loop: PartDiagnosis,
    *,
    steps: tuple[LoopStep, ...] = (),
    measured: tuple[StepError, ...] = (),
    todo: tuple[str, ...] = (),
    trace: str | None = None,
    layers: int = 4,
    path: str = "models/tiny/model.onnx",
    reach: Reach | None = None,
) -> Diagnosis:
    scenario, plan = scenario_of(export, loop)
    taken: ItemState = "wrong" if loop.verdict == "wrong" else "unknown" if loop.verdict == "unknown" else "done"
    return Diagnosis(
        scenario=scenario,
        plan=plan,
        export=export,
        loop=loop,
        checklist=(
            Item(id="cache-taken", text="The cache is taken at step 0.", state=taken),
            Item(id="cache-passed-on", text="It is passed on from step to step.", state=taken),
            Item(id="input-ids-shape", text="input_ids has the right shape at every step.", state=taken),
            Item(id="whole", text="The repaired whole is tested.", state="done" if scenario == "C" else "unknown"),
        ),
        todo=todo,
        target=Target(
            path=path,
            graphs=("model.onnx",),
            layout="growing",
            cache="[batch, 2 heads, time, 16]",
            layers=layers,
            precision="fp32",
            opset={"": 18, "com.microsoft": 1},
            ir_version=10,
            trace=trace,
        ),
        measurements=Measurements(limit=LIMIT if measured else None, steps=measured, loop=steps, reach=reach),
        versions={"bento-kv": "0.1.0", "onnxruntime": "1.32.0", "onnx": "1.23.2"},
        seconds=1.84,
    )


def scenario_a(count: int = 6, layers: int = 4) -> Diagnosis:
    return diagnosis(
        PartDiagnosis.of([]),
        PartDiagnosis.of([NOT_EXTRACTED, NOT_TRUNCATED]),
        steps=faulty(count),
        measured=errors(count, layers),
        todo=(
            "Mend the loop: keep the cache that step 0 returns, and feed one token from step 1 on.",
            "Print the golden trace, and compare yours with it.",
            "bento-kv trace models/tiny/model.onnx --prompt-ids 5,6,7,8,9 --steps 6",
            "Diagnose again.",
            "bento-kv doctor models/tiny/model.onnx --trace trace.jsonl",
        ),
        trace="trace.jsonl",
        layers=layers,
    )


def scenario_b() -> Diagnosis:
    return diagnosis(
        PartDiagnosis.of([BAKED]),
        PartDiagnosis.of([NOT_EXTRACTED]),
        steps=faulty(6),
        measured=errors(6, 4, broken_from=2),
        todo=(
            "Mend the export first: a loop cannot be judged on wrong numbers.",
            "bento-kv repair models/tiny/model.onnx -o models/tiny-mended/model.onnx --reference models/original",
            "Mend the loop: keep the cache that step 0 returns.",
            "bento-kv doctor models/tiny-mended/model.onnx --trace trace.jsonl",
        ),
        trace="trace.jsonl",
    )


REACH = Reach(declared=64, declared_by="config.json", positions=64, looked=("a prompt of 64 tokens",), left=("rows",))


def scenario_c(count: int = 6, layers: int = 4) -> Diagnosis:
    return diagnosis(
        PartDiagnosis.of([]),
        PartDiagnosis.of([]),
        steps=golden(count),
        measured=errors(count, layers),
        layers=layers,
        reach=REACH,
    )


def scenario_d() -> Diagnosis:
    position = Finding(
        id="position-ignores-past",
        where="node /model/Range_1",
        explain="Positions start at 0 in each step: with a past of 5 the new token is rotated as if it were the first.",
        fix="Add the past length to the start of the range.",
    )
    return diagnosis(
        PartDiagnosis.of([BAKED, position]),
        PartDiagnosis.of([]),
        steps=golden(6),
        measured=errors(6, 4, broken_from=1),
        todo=(
            "Mend the export.",
            "bento-kv repair models/tiny/model.onnx -o models/tiny-mended/model.onnx",
            "bento-kv doctor models/tiny-mended/model.onnx",
        ),
    )


def unloaded() -> Diagnosis:
    """Nothing could be run: no numbers, no steps, an empty layout."""
    whole = diagnosis(PartDiagnosis.of([UNLOADED]), PartDiagnosis.of([], tried=False))
    return whole.model_copy(
        update={
            "target": Target(path="broken.onnx", graphs=(), layout="unknown"),
            "checklist": (),
            "versions": {},
        }
    )


def not_a_number() -> Diagnosis:
    nan = Finding(id="nan", where="step 2, logits", explain="All logits are NaN.", fix="Export in fp32.")
    steps = tuple(
        step.model_copy(update={"logits": None, "keys": (None,) * 4, "values": (0.0, None, 0.5, 3e-9)})
        if step.step >= 2
        else step
        for step in errors(5, 4)
    )
    return diagnosis(PartDiagnosis.of([nan]), PartDiagnosis.of([], tried=False), measured=steps)


HOSTILE = "<script>alert(1)</script>\n\x1b[31mred\x1b]0;title\x07\r\u202eback\x9b2J"
LONG = "past_key_values." + "very_long_scope/" * 30 + "key"


def hostile() -> Diagnosis:
    """What a file that somebody else wrote may call its parts."""
    names = [
        Finding(id="past-present-unpaired", where=f"input {HOSTILE}", explain=HOSTILE, fix=f'"{HOSTILE}" onload="x'),
        Finding(id="kv-shape-mismatch", where=f"input {LONG}", explain=LONG, fix="Rename 日本語の名前 " * 12),
        Finding(id="nan", where="", explain="", fix=""),
    ]
    whole = diagnosis(
        PartDiagnosis.of(names),
        PartDiagnosis.of([]),
        steps=golden(3),
        measured=errors(3, 2),
        todo=(HOSTILE, f"bento-kv doctor {HOSTILE}"),
        trace=HOSTILE,
        path=HOSTILE,
    )
    target = whole.target.model_copy(update={"graphs": (HOSTILE,), "layout": HOSTILE, "cache": HOSTILE})
    return whole.model_copy(update={"target": target, "versions": {HOSTILE: HOSTILE}})


def every_kind() -> list[Diagnosis]:
    return [
        scenario_a(),
        scenario_b(),
        scenario_c(),
        scenario_d(),
        unloaded(),
        not_a_number(),
        hostile(),
        scenario_a(count=64, layers=32),
        scenario_c(count=300),
    ]

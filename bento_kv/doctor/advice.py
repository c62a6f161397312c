"""What to do about a diagnosis: the checklist, and the plan in order, the export before the loop."""

from __future__ import annotations

import shlex

from bento_kv.doctor.faults import CHECKLIST, FAULTS, ItemId
from bento_kv.doctor.records import Item, ItemState, PartDiagnosis, Scenario, Verdict

_STATES: dict[Verdict, ItemState] = {"right": "done", "wrong": "wrong", "unknown": "unknown"}


def checklist(export: PartDiagnosis, loop: PartDiagnosis) -> tuple[Item, ...]:
    """Each thing that has to be right, and whether it is."""
    wrong = {item for finding in loop.findings for item in FAULTS[finding.id].items}

    def state(item: ItemId) -> ItemState:
        if item == "export":
            return _STATES[export.verdict]
        if item == "whole":
            return _STATES[loop.verdict] if export.verdict == "right" else "unknown"
        return "wrong" if item in wrong else "unknown" if loop.verdict == "unknown" else "done"

    return tuple(Item(id=item, text=text, state=state(item)) for item, text in CHECKLIST.items())


def todo(
    scenario: Scenario,
    export: PartDiagnosis,
    loop: PartDiagnosis,
    *,
    target: str,
    graph: str | None,
    traced: bool,
    reference: str | None,
) -> tuple[str, ...]:
    """The plan, first things first; commands can be copied.

    Args:
        scenario: that follows from the two.
        export, loop: what was found of each.
        target: what was diagnosed.
        graph: its file that `repair` would mend; None where only a new export does.
        traced: the loop judged is the user's own.
        reference: the original model, if it was given.
    """
    name, source = shlex.quote(target), shlex.quote(reference or "SOURCE")
    repaired = "repaired.onnx" if graph is not None else "exported"
    steps: list[str] = []
    if export.verdict == "wrong":
        first = export.findings[0]
        steps.append(f"Plan 2, the export: {first.id}, {first.where}. {first.fix}")
        if graph is not None:
            steps.append(f"bento-kv repair {shlex.quote(graph)} -o {repaired} --reference {source}")
        else:
            steps.append(f"bento-kv export {source} -o {repaired}")
        steps.append(f"bento-kv doctor {repaired}{' --trace TRACE' if traced else ''}")
    if loop.verdict == "wrong":
        for finding in loop.findings:
            steps.append(f"Plan 1, the loop: {finding.id}, {finding.where}. {finding.fix}")
        steps.append("Print a trace of the mended loop, and have it judged:")
        steps.append(f"bento-kv doctor {repaired if export.verdict == 'wrong' else name} --trace TRACE")
    if scenario == "C":
        if loop.verdict == "unknown":
            steps.append("The loop was not judged: print a trace of it, and give it with --trace.")
        else:
            steps.append(
                "Nothing that was looked at has to be mended."
                + ("" if traced else " The loop judged is bento_kv's own; yours:")
            )
            if not traced:
                steps.append(f"bento-kv doctor {name} --trace TRACE")
    return tuple(steps)

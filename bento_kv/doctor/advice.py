"""What to do about a diagnosis: the checklist, and the plan in order, the export before the loop."""

from __future__ import annotations

import shlex

from bento_kv.doctor.records import Item, LayerDiagnosis, Scenario, State

_LOOP_ITEMS: tuple[tuple[str, str, frozenset[str]], ...] = (
    ("cache-taken", "The cache is taken at step 0", frozenset({"step0-cache-not-extracted"})),
    (
        "cache-passed-on",
        "It is passed on, each step's to the next",
        frozenset({"step0-cache-not-extracted", "past-not-fed", "past-stale", "layers-swapped"}),
    ),
    (
        "input-ids-shape",
        "input_ids has the right shape at every step",
        frozenset({"input-ids-not-truncated"}),
    ),
    (
        "positions-and-mask",
        "Positions and mask go on behind the past",
        frozenset({"position-not-advanced", "mask-too-short"}),
    ),
)


def checklist(export: LayerDiagnosis, loop: LayerDiagnosis) -> tuple[Item, ...]:
    """Each thing that has to be right, and whether it is."""
    states: dict[str, State] = {"right": "done", "wrong": "wrong", "unknown": "unknown"}
    items = [Item(id="export", text="The graph takes a past and returns it grown", state=states[export.verdict])]
    found = {finding.id for finding in loop.findings}
    for id, text, faults in _LOOP_ITEMS:
        state: State = "wrong" if found & faults else "unknown" if loop.verdict == "unknown" else "done"
        items.append(Item(id=id, text=text, state=state))
    whole: State = "unknown"
    if export.verdict == "right" and loop.verdict != "unknown":
        whole = "done" if loop.verdict == "right" else "wrong"
    items.append(Item(id="whole", text="Export and loop together give the tokens that they should", state=whole))
    return tuple(items)


def todo(
    scenario: Scenario,
    export: LayerDiagnosis,
    loop: LayerDiagnosis,
    *,
    target: str,
    graph: str | None,
    traced: bool,
    reference: str | None,
) -> tuple[str, ...]:
    """The plan, first things first; commands can be copied.

    Args:
        scenario: that follows from the layers.
        export, loop: the layers.
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
            steps.append("Nothing has to be mended." + ("" if traced else " The loop judged is bento_kv's own; yours:"))
            if not traced:
                steps.append(f"bento-kv doctor {name} --trace TRACE")
    return tuple(steps)

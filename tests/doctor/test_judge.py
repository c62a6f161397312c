"""Loops of all kinds are judged by their traces: the right cause at the right step, and no word against a right loop."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bento_kv.doctor.faults import LOOP_FAULTS
from bento_kv.doctor.loop.golden import golden_trace
from bento_kv.doctor.loop.judge import LoopJudgement, judge_loop
from bento_kv.doctor.loop.reading import read_trace
from bento_kv.doctor.loop.trace import Trace, TraceStep
from bento_kv.runtime.graph import CachedGraph
from bento_kv.runtime.growing import GrowingGraph
from tests.doctor.toy import ToyDecoder
from tests.mutants.loops import FAULTY, HEALTHY, LOOPS, Loop
from tests.mutants.printing import Fields

PROMPTS = ([5, 9, 3, 17, 22, 8, 31], [11, 2, 11, 45])
TOYS = {
    "mask and positions": ToyDecoder(),
    "mask": ToyDecoder(takes_positions=False),
    "positions": ToyDecoder(takes_mask=False),
    "neither": ToyDecoder(takes_mask=False, takes_positions=False),
}
# Structure is judged without a decoder, and only what shows in ids and lengths.
NUMERIC = {"tokens-diverge"}
STRUCTURAL = [l for l in FAULTY if l.required_ids is None and l.first is not None and not NUMERIC & set(l.ids)]
BY_NAME = {loop.name: loop for loop in LOOPS}


def parsed(lines: Sequence[dict[str, Any]]) -> Trace:
    return read_trace(io.StringIO("\n".join(json.dumps(line) for line in lines)))


def judged(loop: Loop, graph: CachedGraph, prompt: Sequence[int], chosen: Fields) -> LoopJudgement:
    return judge_loop(parsed(loop.make(graph, prompt, loop.steps, chosen)), graph, pad_token_id=loop.pad_token_id)


def check(loop: Loop, graph: CachedGraph, prompt: Sequence[int]) -> int:
    """Returns in how many traces the loop can be told from a right one."""
    takes = {"mask": graph.takes_mask, "positions": graph.takes_positions}
    told = 0
    for chosen in loop.only:
        if not all(takes[need] for need in loop.needs):
            continue
        verdict = judged(loop, graph, prompt, chosen)
        if loop.hidden(graph, prompt, chosen):
            assert not verdict.findings
            continue
        told += 1
        assert loop.is_judged(verdict.findings, verdict.first_wrong, chosen), (chosen, prompt, verdict)
        assert all(finding.explain and finding.fix for finding in verdict.findings)
    return told


def test_there_are_enough_loops() -> None:
    assert len(HEALTHY) >= 8
    assert len(FAULTY) >= 18
    assert len(BY_NAME) == len(LOOPS)


@pytest.mark.parametrize("kind", TOYS)
@pytest.mark.parametrize("name", BY_NAME)
def test_a_loop_is_judged_rightly(name: str, kind: str) -> None:
    graph = TOYS[kind]
    for prompt in PROMPTS:
        check(BY_NAME[name], graph, prompt)


@pytest.mark.parametrize("name", BY_NAME)
def test_every_loop_shows_somewhere(name: str) -> None:
    assert sum(check(BY_NAME[name], TOYS["mask and positions"], prompt) for prompt in PROMPTS) > 0


def test_loops_over_a_real_decoder(growing_file: Path) -> None:
    graph = GrowingGraph.open(growing_file)
    assert sum(check(loop, graph, PROMPTS[0]) for loop in LOOPS) > len(LOOPS)


def documented(page: str = "traces.md") -> str:
    return (Path(__file__).parents[2] / "docs" / "reference" / page).read_text(encoding="utf-8")


def run_documented(code: str, growing_file: Path, folder: Path) -> LoopJudgement:
    """Judge what the Python of the docs prints, run beside a `model.onnx`."""
    for file in growing_file.parent.glob(f"{growing_file.name}*"):
        (folder / file.name.replace(growing_file.name, "model.onnx")).symlink_to(file)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return judge_loop(read_trace(io.StringIO(done.stdout)), GrowingGraph.open(growing_file))


def test_the_python_of_the_docs_prints_a_right_trace(growing_file: Path, tmp_path: Path) -> None:
    code = documented().split("```python\n")[1].split("```")[0]
    verdict = run_documented(code, growing_file, tmp_path)
    assert (verdict.findings, verdict.notes, verdict.compared) == ((), (), 8)


def test_the_python_of_the_docs_without_its_last_step_is_found_wrong(growing_file: Path, tmp_path: Path) -> None:
    code = documented().split("```python\n")[1].split("```")[0]
    forgets = "\n".join(line for line in code.splitlines() if "results[name.replace" not in line)
    assert forgets != code.rstrip()
    verdict = run_documented(forgets, growing_file, tmp_path)
    assert [finding.id for finding in verdict.findings] == ["past-not-fed"]


def test_the_docs_name_every_field_and_every_finding() -> None:
    rows = [line.split("|")[1] for line in documented().splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert named == {field.name for field in fields(TraceStep)}
    assert set(re.findall(r"^### (.+)$", documented("findings.md"), re.MULTILINE)) >= {
        fault.id for fault in LOOP_FAULTS
    }


@pytest.mark.parametrize("loop", STRUCTURAL, ids=lambda loop: loop.name)
def test_lengths_and_ids_suffice(loop: Loop) -> None:
    graph = TOYS["mask and positions"]
    for prompt in PROMPTS:
        verdict = judge_loop(parsed(loop.make(graph, prompt, loop.steps, "required")), None)
        assert loop.is_judged(verdict.findings, verdict.first_wrong, "required"), verdict


@pytest.mark.parametrize("loop", HEALTHY, ids=lambda loop: loop.name)
def test_a_right_loop_is_right_without_a_decoder(loop: Loop) -> None:
    for prompt in PROMPTS:
        for chosen in loop.only:
            trace = parsed(loop.make(TOYS["mask and positions"], prompt, loop.steps, chosen))
            verdict = judge_loop(trace, None, pad_token_id=loop.pad_token_id)
            assert verdict.diagnosis.verdict == "right"
            assert any("decoder" in note for note in verdict.notes)


def test_the_golden_trace_is_right() -> None:
    graph = TOYS["mask and positions"]
    trace = Trace(tuple(golden_trace(graph, PROMPTS[0], 6)))
    verdict = judge_loop(trace, graph)
    assert (verdict.findings, verdict.notes, verdict.compared) == ((), (), 6)
    assert [(s.expected_tokens, s.expected_past_length) for s in verdict.steps] == [(7, 0)] + [
        (1, n) for n in range(7, 12)
    ]


def test_the_strip_of_the_original_fault_shows_what_each_step_should_have_been() -> None:
    loop = BY_NAME["no cache, whole sequence"]
    verdict = judged(loop, TOYS["neither"], PROMPTS[1], "all")
    assert verdict.diagnosis.verdict == "wrong"
    assert [(s.input_ids, s.past_length) for s in verdict.steps[:3]] == [((1, 4), 0), ((1, 5), 0), ((1, 6), 0)]
    assert [(s.expected_tokens, s.expected_past_length) for s in verdict.steps[:3]] == [(4, 0), (1, 4), (1, 5)]
    assert verdict.steps[0].findings == ("step0-cache-not-extracted",)
    assert all(s.findings == ("input-ids-not-truncated",) for s in verdict.steps[1:])


def test_one_step_says_nothing() -> None:
    graph = TOYS["neither"]
    verdict = judge_loop(Trace(tuple(golden_trace(graph, [1, 2], 1))), graph)
    assert verdict.diagnosis.verdict == "unknown"
    assert "one step" in verdict.notes[0]


def test_a_present_that_was_taken_and_not_fed_is_told_from_one_that_was_not_taken() -> None:
    def trace(present: int | None) -> Trace:
        ids = [[7, 8, 9], [4], [5]]
        lines = [{"step": at, "input_ids": [row], "past_length": 0} for at, row in enumerate(ids)]
        return parsed([{**line, "present_length": present if at == 0 else 1} for at, line in enumerate(lines)])

    assert [f.id for f in judge_loop(trace(3), None).findings] == ["past-not-fed"]
    assert [f.id for f in judge_loop(trace(0), None).findings] == ["step0-cache-not-extracted"]
    assert [f.id for f in judge_loop(trace(None), None).findings] == ["step0-cache-not-extracted"]


@pytest.mark.parametrize(
    ("lengths", "words"),
    [
        ((0, 3, 7, 8), "once more"),
        ((0, 64, 64, 64), "capacity"),
        ((3, 4, 5, 6), "after the step"),
        ((0, 4, 5, 6), "before it is fed"),
        ((5, 8, 9, 10), "run before"),
    ],
)
def test_a_past_that_is_too_long_is_explained(lengths: Sequence[int], words: str) -> None:
    ids = [[7, 8, 9], [4], [5], [6]]
    lines = [{"step": i, "input_ids": [ids[i]], "past_length": lengths[i]} for i in range(4)]
    (finding,) = judge_loop(parsed(lines), None).findings
    assert finding.id == "past-stale"
    assert words in finding.explain


def test_the_layers_that_are_swapped_are_named() -> None:
    verdict = judged(BY_NAME["keys for values"], TOYS["neither"], PROMPTS[0], "all")
    assert "layer 0's values is fed as layer 0's keys" in verdict.findings[0].explain


def test_positions_that_are_off_from_the_start_are_found_there() -> None:
    lines = BY_NAME["greedy"].make(TOYS["neither"], [3, 4, 5], 4, "all")
    for line in lines:
        line["position_ids"] = [[at + 1 for at in line["position_ids"][0]]]
    (finding,) = judge_loop(parsed(lines), None).findings
    assert (finding.id, finding.where) == ("position-not-advanced", "step 0")
    assert "1 too high" in finding.explain


def test_drafts_that_were_kept_show_in_the_tokens_fed_after_them() -> None:
    lines = BY_NAME["rejected drafts kept"].make(TOYS["mask and positions"], PROMPTS[0], 8, "required")
    (finding,) = judge_loop(parsed(lines), TOYS["mask and positions"]).findings
    assert finding.id == "past-stale"
    assert "drafts" in finding.explain


def test_a_mask_that_is_too_long_says_so() -> None:
    lines = BY_NAME["greedy"].make(TOYS["neither"], [3, 4, 5], 4, "all")
    for line in lines[1:]:
        line["attention_mask_length"] += 2
    (finding,) = judge_loop(parsed(lines), None).findings
    assert (finding.id, finding.where) == ("mask-too-short", "step 1")
    assert "2 too long" in finding.explain


def test_a_mask_as_long_as_the_buffer_is_no_fault() -> None:
    lines = BY_NAME["greedy"].make(TOYS["neither"], [3, 4, 5], 4, "all")
    verdict = judge_loop(parsed([{**line, "attention_mask_length": 64} for line in lines]), TOYS["neither"])
    assert not verdict.findings
    assert "capacity" in " ".join(verdict.notes)


def test_a_sampled_run_without_logits_is_told_to_be_greedy() -> None:
    lines = BY_NAME["sampled"].make(TOYS["neither"], PROMPTS[0], 8, "required")
    verdict = judge_loop(parsed(lines), TOYS["neither"])
    assert [finding.id for finding in verdict.findings] == ["tokens-diverge"]
    assert any("greedy" in note for note in verdict.notes)


def test_other_sums_and_other_rounding_are_no_fault() -> None:
    """Half-precision noise on the logits, and sums in an order of their own."""
    graph, random = TOYS["mask and positions"], np.random.default_rng(0)
    steps = []
    for step in golden_trace(graph, PROMPTS[0], 6):
        assert step.logits_top
        assert step.past_sum
        assert step.present_sum
        noisy = tuple((token, value * (1 + random.normal(0, 5e-4))) for token, value in step.logits_top[0])
        past, present = step.past_sum, step.present_sum
        steps.append(
            replace(
                step,
                logits_top=(noisy,),
                past_sum=past[::2] + past[1::2],
                present_sum=present[::2] + present[1::2],
            )
        )
    verdict = judge_loop(Trace(tuple(steps)), graph)
    assert not verdict.findings
    assert any("order" in note for note in verdict.notes)


def test_rows_whose_padding_cannot_be_known_are_not_blamed() -> None:
    loop = BY_NAME["batch, padded on the left"]
    verdict = judge_loop(parsed(loop.make(TOYS["mask and positions"], PROMPTS[0], 8, "required")), ToyDecoder())
    assert not verdict.findings
    assert any("padding" in note for note in verdict.notes)


def test_a_wrong_decoder_does_not_make_the_trace_right() -> None:
    """A trace of other numbers is not accepted: the check can fail."""
    lines = BY_NAME["greedy"].make(TOYS["neither"], PROMPTS[0], 8, "all")
    verdict = judge_loop(parsed(lines), ToyDecoder(takes_mask=False, takes_positions=False, seed=1))
    assert [(finding.id, finding.where) for finding in verdict.findings] == [("tokens-diverge", "step 0")]


def test_a_trace_of_thousands_of_tokens_is_judged() -> None:
    prompt = list(np.random.default_rng(0).integers(0, 50, 20_000).tolist())
    lines = [{"step": 0, "input_ids": [prompt], "past_length": 0}]
    lines += [{"step": i, "input_ids": [[*prompt, *range(i)]], "past_length": 0} for i in range(1, 6)]
    assert judge_loop(parsed(lines), None).first_wrong == 0


def test_golden_traces_round_trip(tmp_path: Path) -> None:
    trace = Trace(tuple(golden_trace(TOYS["neither"], [4, 5, 6], 4)))
    file = tmp_path / "trace.jsonl"
    file.write_text("".join(step.to_json() + "\n" for step in trace.steps))
    assert read_trace(file) == trace

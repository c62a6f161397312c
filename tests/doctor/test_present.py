"""What `doctor` prints: words, width, colour, and names that a terminal must not obey."""

from __future__ import annotations

import io
import os
import re
import unicodedata

import pytest
from rich.cells import cell_len

from bento_kv.doctor.records import Diagnosis, LoopStep, Measurements, PartDiagnosis, Target
from bento_kv.doctor.show.shown import Gap, cells, headline, number, selected
from bento_kv.doctor.show.text import render, render_for
from tests.doctor import diagnoses

SMALL = """\
A: the export is right, the loop is wrong. Mend the loop (plan
1).

  target     models/tiny/model.onnx
  layout     growing (model.onnx)
  cache      [batch, 2 heads, time, 16], 4 layers
  precision  fp32
  opset      ai.onnx 18, com.microsoft 1; IR version 10
  trace      trace.jsonl

  Layer   Verdict  Found
  ──────────────────────────────────────────
  export  ✓ right  nothing
  loop    ✗ wrong  step0-cache-not-extracted

Loop: what is wrong
  ✗ step0-cache-not-extracted: the cache that step 0 computed
    was not taken
    where  step 0
    what   present has 5 positions after step 0, and step 1 was
           fed 0 of them.
    fix    Keep every present.* output of step 0, and hand it
           to step 1 as past_key_values.*.

Largest errors, cached against uncached
  logits  1.6e-7 at step 0
  keys    3.6e-7 at step 1, layer 0
  values  3.6e-7 at step 0, layer 2
  limit   1e-5

Steps of the traced loop
  Step  ids              past   present  mask  positions  Found
  ─────────────────────────────────────────────────────────────
    0   [1, 5]           0      5        5     0..4
  ✗ 1   [1, 6] ≠ [1, 1]  0 ≠ 5  6        6     0..5       #1 #2
  ≠ stands before what it should have been
  #1 step0-cache-not-extracted
  #2 input-ids-not-truncated

Checklist
  ✗ The cache is taken at step 0.
  ✗ It is passed on from step to step.
  ✗ input_ids has the right shape at every step.
  ? The repaired whole is tested.

To do, in this order
  1. Mend the loop, and diagnose it again.
     bento-kv doctor models/tiny/model.onnx --trace trace.jsonl --reference models/original

Diagnosed in 1.8 s with bento-kv 0.1.0, onnxruntime 1.32.0,
onnx 1.23.2
"""


def _small() -> Diagnosis:
    return diagnoses.diagnosis(
        PartDiagnosis.of([]),
        PartDiagnosis.of([diagnoses.NOT_EXTRACTED]),
        steps=diagnoses.faulty(2),
        measured=diagnoses.errors(2, 4),
        todo=(
            "Mend the loop, and diagnose it again.",
            "bento-kv doctor models/tiny/model.onnx --trace trace.jsonl --reference models/original",
        ),
        trace="trace.jsonl",
    )


def test_a_small_diagnosis_to_the_letter() -> None:
    assert render(_small(), colour=False, width=63) == SMALL


@pytest.mark.parametrize(
    ("diagnosis", "first"),
    [
        (diagnoses.scenario_a(), "A: the export is right, the loop is wrong. Mend the loop (plan 1)."),
        (
            diagnoses.scenario_b(),
            "B: the export and the loop are wrong. Mend the export (plan 2), then the loop (plan 1).",
        ),
        (
            diagnoses.scenario_c(),
            "C: the export and the loop are right. There is nothing to mend, up to position 64 of 64 declared.",
        ),
        (diagnoses.scenario_d(), "D: the export is wrong, the loop is right. Mend the export (plan 2)."),
        (diagnoses.unloaded(), "D: the export is wrong, the loop could not be tried. Mend the export (plan 2)."),
    ],
)
def test_the_first_line_is_the_verdict(diagnosis: Diagnosis, first: str) -> None:
    assert render(diagnosis, colour=False, width=100).splitlines()[0] == first


def test_what_was_not_tried_is_not_called_right() -> None:
    untried = PartDiagnosis.of([], tried=False)
    words = {
        headline(diagnoses.diagnosis(export, loop))
        for export, loop in ((untried, untried), (PartDiagnosis.of([]), untried))
    }
    assert words == {
        ("neither the export nor the loop could be tried.", "Nothing was found to mend."),
        ("the export is right, the loop could not be tried.", "Nothing was found to mend."),
    }


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("diagnosis", diagnoses.every_kind())
def test_no_line_is_wider_than_asked_but_commands_are_whole(diagnosis: Diagnosis, width: int) -> None:
    lines = render(diagnosis, colour=False, width=width).splitlines()
    wide = [line.strip() for line in lines if cell_len(line) > width]
    assert all(line.startswith("bento-kv ") for line in wide)
    commands = [line for line in diagnosis.todo if line.startswith("bento-kv ") and line.isprintable()]
    assert [line.strip() for line in lines if line.strip() in commands] == commands


def test_a_terminal_is_given_nothing_to_obey() -> None:
    text = render(diagnoses.hostile(), colour=False, width=200)
    odd = {char for char in text if unicodedata.category(char) in ("Cc", "Cf") and char != "\n"}
    assert odd == set()
    assert r"<script>alert(1)</script>\n\x1b[31mred\x1b]0;title\x07\r\u202eback\x9b2J" in text


def test_colour_is_styling_alone() -> None:
    plain, coloured = (render(diagnoses.hostile(), colour=colour, width=90) for colour in (False, True))
    styles = re.findall(r"\x1b\[[0-9;]*m", coloured)
    assert len(styles) > 20
    bare = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert "\x1b" not in bare
    assert [line.rstrip() for line in bare.splitlines()] == plain.splitlines()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("diagnosis", diagnoses.every_kind())
def test_every_encoding_can_carry_it(diagnosis: Diagnosis, encoding: str) -> None:
    text = render(diagnosis, colour=False, width=90, encoding=encoding)
    text.encode(encoding)
    assert "x wrong" in text or "+ right" in text


class _Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def _stream(terminal: bool, encoding: str = "utf-8") -> io.TextIOWrapper:
    return (_Terminal if terminal else io.TextIOWrapper)(io.BytesIO(), encoding=encoding)


def test_only_a_terminal_gets_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("shutil.get_terminal_size", lambda fallback: os.terminal_size((70, 24)))
    assert render_for(_small(), _stream(True)) == render(_small(), colour=True, width=70)
    assert render_for(_small(), _stream(False, "ascii")) == render(_small(), colour=False, width=100, encoding="ascii")
    for name, value in (("TERM", "dumb"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
        assert "\x1b" not in render_for(_small(), _stream(True))
        monkeypatch.setenv("TERM", "xterm")


def test_a_reference_is_told_without_steps() -> None:
    whole = diagnoses.scenario_c(0).model_copy(update={"measurements": Measurements(reference=2.04e-7)})
    assert "torch  2e-7, the logits against the reference" in render(whole, colour=False, width=80)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "NaN"), (0.0, "0"), (1e-5, "1e-5"), (3.14e-7, "3.1e-7"), (0.0456, "0.046"), (120.0, "120"), (5e4, "5e4")],
)
def test_numbers_are_short(value: float | None, shown: str) -> None:
    assert number(value) == shown


def test_an_infinite_error_is_not_a_number() -> None:
    first, *others = diagnoses.errors(3, 2)
    measured = Measurements(limit=1e-5, steps=(first.model_copy(update={"logits": float("inf")}), *others))
    whole = diagnoses.scenario_c().model_copy(update={"measurements": measured})
    assert "logits  NaN at step 0; 1 of 3 over the limit" in render(whole, colour=False, width=80)


def _covered(shown: list[LoopStep | Gap]) -> list[int]:
    return [
        step for part in shown for step in (range(part.first, part.last + 1) if isinstance(part, Gap) else [part.step])
    ]


@pytest.mark.parametrize("wrong", [set(), {5}, {90, 91, 200}, set(range(1, 300)), set(range(0, 300, 2))])
def test_every_step_is_shown_or_counted_and_a_lone_fault_is_shown(wrong: set[int]) -> None:
    bad = diagnoses.faulty(300, since=0)
    steps = tuple(bad[right.step] if right.step in wrong else right for right in diagnoses.golden(300))
    shown = selected(steps)
    assert _covered(shown) == list(range(300))
    assert len(shown) <= 64
    assert sum(part.wrong if isinstance(part, Gap) else bool(part.findings) for part in shown) == len(wrong)
    if len(wrong) < 10:
        assert wrong <= {part.step for part in shown if isinstance(part, LoopStep)}


def test_a_step_that_was_not_found_wrong_is_held_against_nothing() -> None:
    padded = diagnoses.golden(1)[0].model_copy(update={"position_ids": (1, 3), "attention_mask_length": None})
    whole = diagnoses.scenario_c().model_copy(update={"measurements": Measurements(loop=(padded,))})
    text = render(whole, colour=False, width=80)
    assert "≠" not in text
    assert re.search(r"0 +\[1, 5\] +0 +5 +1\.\.3", text)


def test_little_is_known_of_a_graph_that_does_not_load() -> None:
    text = render(diagnoses.unloaded(), colour=False, width=80)
    assert "target  broken.onnx\n  layout  unknown\n\n" in text
    assert all(title not in text for title in ("Checklist", "Steps", "Largest errors", "cache  "))


def test_exact_is_exact_everywhere() -> None:
    steps = tuple(step.model_copy(update={"logits": 0.0, "keys": (0.0,)}) for step in diagnoses.errors(2, 1))
    whole = diagnoses.scenario_c().model_copy(update={"measurements": Measurements(limit=0.0, steps=steps)})
    text = render(whole, colour=False, width=80)
    assert "logits  0 everywhere\n  keys    0 everywhere\n  values  1.2e-7 at step 0, layer 0; 2 of 2 over" in text


def test_what_a_trace_does_not_say_has_no_column() -> None:
    bare = tuple(
        step.model_copy(update={"present_length": None, "attention_mask_length": None, "position_ids": None})
        for step in diagnoses.faulty(2)
    )
    whole = diagnoses.scenario_c().model_copy(update={"measurements": Measurements(loop=bare)})
    assert "\n  Step  ids              past   Found\n" in render(whole, colour=False, width=80)


def test_a_short_loop_is_shown_whole() -> None:
    assert selected(diagnoses.golden(12)) == list(diagnoses.golden(12))


def test_one_layer_is_one_layer() -> None:
    target = Target(path="m", graphs=("m",), layout="growing", cache="[batch]", layers=1)
    whole = diagnoses.scenario_c().model_copy(update={"target": target})
    assert "[batch], 1 layer\n" in render(whole, colour=False, width=80)


@pytest.mark.parametrize(("wrong", "kind"), [(0, "as they should be"), (4, "all wrong"), (2, "2 of them wrong")])
def test_a_gap_says_what_it_hides(wrong: int, kind: str) -> None:
    assert Gap(3, 6, wrong).words == f"steps 3 to 6: 4 more, {kind}"


@pytest.mark.parametrize(
    ("fault", "compared"),
    [("mask-too-short", {"mask": "6"}), ("position-not-advanced", {"positions": "5"}), ("past-stale", {})],
)
def test_mask_and_positions_are_compared_where_they_are_at_fault(fault: str, compared: dict[str, str]) -> None:
    step = diagnoses.golden(2)[1].model_copy(
        update={"attention_mask_length": 1, "position_ids": (0, 0), "present_length": 64, "findings": (fault,)}
    )
    assert {cell.name: cell.expected for cell in cells(step) if cell.expected is not None} == compared


def test_notes_are_told() -> None:
    noted = diagnoses.scenario_c().model_copy(update={"notes": ("the mask is 64 long at every step",)})
    assert "\nNotes\n  - the mask is 64 long at every step\n" in render(noted, colour=False, width=80)

"""A user whose generation is slow or wrong: from the first diagnosis to the mended whole, on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from tests.cli.program import run, run_apart
from tests.doctor.graphs import Made, make

PROMPT = [5, 6, 7, 8, 9]


def _diagnose(*arguments: str | Path) -> dict[str, Any]:
    answer = run("doctor", *arguments, "--json")
    assert answer.returncode in (0, 1), answer.stderr
    diagnosis: dict[str, Any] = json.loads(answer.stdout)
    assert (answer.returncode == 0) == (diagnosis["scenario"] == "C")
    return diagnosis


def _ids(layer: dict[str, Any]) -> list[str]:
    return [finding["id"] for finding in layer["findings"]]


def _generate(file: Path, trace: Path, *, mended: bool) -> list[int]:
    """A loop as users write it, printing a trace. Unless mended, step 0 does not take the cache, and so the whole
    sequence goes in at every step."""
    session = ort.InferenceSession(str(file))
    inputs = {value.name: value for value in session.get_inputs() if value.name.startswith("past")}
    past = {name: np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32) for name, value in inputs.items()}
    sequence, fed, lines = list(PROMPT), list(PROMPT), []
    for step in range(6):
        length = next(iter(past.values())).shape[2]
        feeds = {
            "input_ids": np.array([fed]),
            "attention_mask": np.ones((1, length + len(fed)), np.int64),
            "position_ids": np.arange(length, length + len(fed))[None],
        }
        logits, *presents = session.run(None, {**feeds, **past})
        lines.append(json.dumps({"step": step, "input_ids": [fed], "past_length": length}))
        sequence.append(int(logits[0, -1].argmax()))
        if mended:
            past = dict(zip(past, presents, strict=True))
        fed = sequence[-1:] if mended else sequence
    trace.write_text("\n".join(lines))
    return sequence[len(PROMPT) :]


def _bake_past(healthy: Path, file: Path, length: int) -> None:
    model = onnx.load(healthy)
    for value in model.graph.input:
        if value.name.startswith("past"):
            value.type.tensor_type.shape.dim[2].dim_value = length
    onnx.save(model, file)


def test_the_original_fault_is_scenario_a_at_step_0(growing_file: Path, tmp_path: Path) -> None:
    slow = _generate(growing_file, tmp_path / "slow.jsonl", mended=False)
    found = _diagnose(growing_file, "--trace", tmp_path / "slow.jsonl")
    assert (found["scenario"], found["plan"], found["export"]["verdict"]) == ("A", [1], "right")
    assert _ids(found["loop"]) == ["step0-cache-not-extracted", "input-ids-not-truncated"]
    assert [finding["where"] for finding in found["loop"]["findings"]] == ["step 0", "step 1"]
    states = {item["id"]: item["state"] for item in found["checklist"]}
    assert states["export"] == "done"
    assert states["cache-taken"] == states["input-ids-shape"] == states["whole"] == "wrong"

    fast = _generate(growing_file, tmp_path / "fast.jsonl", mended=True)
    assert fast == slow  # it was only slow
    assert _diagnose(growing_file, "--trace", tmp_path / "fast.jsonl")["scenario"] == "C"


@pytest.mark.usefixtures("traced_once")
def test_from_b_over_a_to_c(growing_file: Path, tiny_source: Path, tmp_path: Path) -> None:
    baked, repaired, trace = tmp_path / "baked.onnx", tmp_path / "repaired.onnx", tmp_path / "trace.jsonl"
    _bake_past(growing_file, baked, 5)
    _generate(growing_file, trace, mended=False)
    found = _diagnose(baked, "--trace", trace)
    assert (found["scenario"], found["plan"]) == ("B", [2, 1])
    assert _ids(found["export"])[0] == "dynamic-axis-baked"
    assert "past_key_values.0.key axis 2 = 5" in found["export"]["findings"][0]["where"]
    assert found["todo"][1].startswith("bento-kv repair ")

    again = run("repair", baked, "-o", repaired, "--reference", tiny_source)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "its export is right" in again.stdout
    found = _diagnose(repaired, "--trace", trace, "--reference", tiny_source)
    assert (found["scenario"], found["plan"]) == ("A", [1])

    _generate(repaired, trace, mended=True)  # behind the inputs and outputs that it always had
    found = _diagnose(repaired, "--trace", trace, "--reference", tiny_source)
    assert (found["scenario"], found["plan"]) == ("C", [])
    assert found["measurements"]["reference"] < 1e-4


def test_an_axis_that_was_only_declared_fixed_is_restored_without_a_reference(
    growing_file: Path, tmp_path: Path
) -> None:
    baked, repaired = tmp_path / "baked.onnx", tmp_path / "repaired.onnx"
    _bake_past(growing_file, baked, 5)
    before = baked.read_bytes()
    answer = run("repair", baked, "-o", repaired, "--json")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    record = json.loads(answer.stdout)
    assert {change["id"] for change in record["mended"]} == {"dynamic-axis-baked"}
    assert record["diagnosis"]["export"]["verdict"] == "right"
    assert baked.read_bytes() == before
    assert "exists" in run("repair", baked, "-o", repaired).stderr
    assert run("repair", baked, "-o", baked, "--force").returncode == 2


def test_the_golden_trace_is_judged_right_from_a_pipe(growing_file: Path) -> None:
    golden = run_apart("trace", growing_file, "--prompt-ids", "5,6,7", "--steps", "5")
    assert golden.returncode == 0, golden.stderr
    assert [json.loads(line)["past_length"] for line in golden.stdout.splitlines()] == [0, 3, 4, 5, 6]
    answer = run_apart("doctor", growing_file, "--trace", "-", input=golden.stdout)
    assert answer.returncode == 0, answer.stdout
    assert answer.stdout.startswith("C: ")


@pytest.mark.parametrize(
    ("made", "code", "message"),
    [
        (Made(layers=("conv", "attention")), 0, "C: the export is right"),
        (Made(layers=("conv", "attention"), stale=True), 1, "present-not-appended"),
        (Made(layers=("conv", "conv"), stacked=True), 0, "states of one size (past_states)"),
        (Made(bytes=True), 2, "cache in int8"),
        (Made(scalar="temperature"), 2, "input temperature"),
    ],
)
def test_the_exit_code_tells_right_wrong_and_not_judged(made: Made, code: int, message: str, tmp_path: Path) -> None:
    answer = run("doctor", make(tmp_path, made))
    assert answer.returncode == code
    assert message in " ".join((answer.stdout + answer.stderr).split())


def test_our_own_decoder_and_its_page(tiny_decoder: Path, tmp_path: Path) -> None:
    answer = run("doctor", tiny_decoder, "--html", tmp_path / "page.html")
    assert answer.returncode == 0, answer.stdout
    assert "in-place, packed" in answer.stdout
    page = (tmp_path / "page.html").read_text()
    assert "<svg" in page
    assert "http" not in page.replace("http-equiv", "")  # nothing to load


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("doctor", "nowhere"), "model store has no nowhere"),
        (("doctor", "nowhere/model.onnx"), "'nowhere/model.onnx'"),
        (("doctor", "{text}"), "is not an ONNX file"),
        (("doctor", "{empty}"), "has no ONNX file"),
        (("doctor", "{folder}/config.json"), "is not an ONNX file"),
        (("doctor", "{file}", "--trace", "{folder}/one.jsonl"), "trace three or more"),
        (("doctor", "{file}", "--trace", "{folder}/other.jsonl"), "token id 700, and the decoder has 300"),
        (("verify", "{folder}", "--max-length", "0"), "--max-length"),
        (("doctor", "{file}", "--trace", "{text}"), "line 1"),
        (("doctor", "{file}", "--trace", "missing.jsonl"), "No such file"),
        (("doctor", "{file}", "--html", "{empty}/a/b.html"), "cannot be written"),
        (("trace", "{file}", "--prompt-ids", "5,x"), "'5,x' is not numbers"),
        (("trace", "{file}", "--prompt-ids", "5,300"), "300 is not a token id"),
        (("trace", "{file}"), "--prompt-ids"),
        (("repair", "{file}", "-o", "{file}"), "the input is kept"),
        (("verify", "{empty}"), "--reference SOURCE"),
    ],
)
def test_wrong_input_is_named_with_its_remedy(
    arguments: tuple[str, ...], message: str, growing_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("no model\n")
    (tmp_path / "config.json").write_text('{"architectures": []}')
    (tmp_path / "one.jsonl").write_text('{"step": 0, "input_ids": [[5]], "past_length": 0}\n')
    steps = [{"step": n, "input_ids": [[700]], "past_length": n} for n in range(3)]
    (tmp_path / "other.jsonl").write_text("\n".join(map(json.dumps, steps)))
    (tmp_path / "empty").mkdir()
    names = {"folder": tmp_path, "file": growing_file, "text": tmp_path / "text.txt", "empty": tmp_path / "empty"}
    answer = run(*(argument.format(**names) for argument in arguments))
    assert answer.returncode == 2
    assert message in " ".join(answer.stderr.split())
    assert "Traceback" not in answer.stderr


def test_colour_is_for_terminals(growing_file: Path) -> None:
    plain = run_apart("doctor", growing_file, PYTHONIOENCODING="ascii")
    assert "\x1b" not in plain.stdout
    assert plain.stdout.isascii()

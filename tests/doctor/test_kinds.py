"""Right decoders of kinds that are easily taken for faulty ones, and what is wrong with those that are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bento_kv.doctor.diagnose import check_export, diagnose
from bento_kv.doctor.faults import ExportFaultId
from bento_kv.doctor.show.page import render_html
from bento_kv.doctor.show.text import render
from bento_kv.errors import DecoderError, ExportError
from bento_kv.repair.repair import repair
from bento_kv.runtime.growing import GrowingGraph
from tests.doctor.graphs import GraphReference, Made, make


@pytest.mark.parametrize("window", [1, 2, 3, 4, 5, 11])
def test_a_short_window_that_does_not_see_what_the_mask_hides_is_right(window: int, tmp_path: Path) -> None:
    assert check_export(make(tmp_path, Made(window=window))).diagnosis.findings == ()


@pytest.mark.parametrize("name", ["num_logits_to_keep", "logits_to_keep"])
@pytest.mark.parametrize("shape", [[], [1]])
def test_the_input_that_says_how_many_logits_are_wanted_is_asked_for_all(
    name: str, shape: list[int | str], tmp_path: Path
) -> None:
    assert check_export(make(tmp_path, Made(keep=(name, shape)))).diagnosis.verdict == "right"


HYBRID, STATIC = Made(layers=("conv", "attention")), Made(static=64)
CARRIED = {
    "convolution beside attention": HYBRID,
    "convolutions alone": Made(layers=("conv", "conv")),
    "recurrences alone": Made(layers=("recurrent", "recurrent")),
    "recurrence and convolution beside attention": Made(layers=("conv", "recurrent", "attention")),
    "states stacked in one tensor": Made(layers=("conv", "attention", "conv"), stacked=True),
    "stacked states alone": Made(layers=("conv", "conv"), stacked=True),
    "without a mask": replace(HYBRID, mask=None),
    "mamba's names": Made(
        layers=("recurrent",), names=("cache_params.ssm_states.{layer}", "new_cache_params.ssm_states.{layer}")
    ),
    "static": STATIC,
    "static, the mask declared as long": replace(STATIC, mask=64),
    "static without mask and positions": replace(STATIC, mask=None, takes_positions=False),
    "static, input_pos": replace(STATIC, write=("input_pos", "span")),
    "static, the first place": replace(STATIC, write=("input_pos", "start")),
    "static, a length": replace(STATIC, write=("past_length", "scalar")),
    "static of one row": replace(STATIC, ids=(1, "sequence")),
    "static beside a state": replace(HYBRID, static=64),
    "the last positions of a window": Made(keeps=5, window=6),
    "the last positions of a short window": Made(keeps=3, window=4),
}


@pytest.mark.parametrize("kind", CARRIED)
def test_what_cannot_be_cut_by_position_is_right_by_what_its_steps_give(kind: str, tmp_path: Path) -> None:
    whole = diagnose(make(tmp_path, CARRIED[kind]))
    assert (whole.scenario, whole.export.verdict, whole.export.findings) == ("C", "right", ())
    assert whole.loop.verdict == "unknown"
    assert "judged by what its steps give" in whole.notes[0]
    reach = whole.measurements.reach
    assert reach is not None
    assert reach.positions == reach.declared
    assert whole.target.layout.startswith(("states of one size", "a static cache", "growing"))
    for shown in (render(whole, colour=False, width=2000), render_html(whole)):
        assert reach.sentence in shown


@pytest.mark.parametrize(
    ("made", "id", "where"),
    [
        (replace(HYBRID, stale=True), "present-not-appended", "present_conv.0"),
        (Made(layers=("attention", "conv"), stale=True), "present-not-appended", "present_conv.1"),
        (Made(layers=("recurrent", "attention"), stale=True), "present-not-appended", "present_recurrent.0"),
        (replace(HYBRID, shifted=True), "present-not-appended", "present_conv.0"),
        (Made(layers=("conv", "conv"), stacked=True, stale=True), "present-not-appended", "present_states"),
        (replace(STATIC, late=1), "present-not-appended", "present.0.key"),
        (replace(STATIC, unmasked=True, mask=None), "mask-ignores-past", "the cache behind position 5"),
        (Made(keeps=5), "present-not-appended", "present.0.key"),
    ],
)
def test_what_is_wrong_with_it_is_found_where_it_is(made: Made, id: ExportFaultId, where: str, tmp_path: Path) -> None:
    findings = check_export(make(tmp_path, made)).diagnosis.findings
    assert [(finding.id, finding.where) for finding in findings] == [(id, where)]


@pytest.mark.parametrize("made", [HYBRID, STATIC])
def test_it_is_held_against_the_model_too(made: Made, tmp_path: Path) -> None:
    plain = replace(made, static=None, layers=("attention", "attention"))
    reference = GraphReference(make(tmp_path / "model", plain))
    whole = diagnose(make(tmp_path / "decoder", made), reference=lambda: reference, reference_name="model")
    # The same weights in another kind of cache; a convolution is another model.
    expected = [] if made is STATIC else ["numeric-mismatch"]
    assert [finding.id for finding in whole.export.findings] == expected


def test_steps_of_one_token_are_judged_against_the_model_and_not_without_it(tmp_path: Path) -> None:
    file = make(tmp_path / "decoder", replace(STATIC, ids=(1, 1)))
    with pytest.raises(DecoderError, match=r"one token a step.*--reference"):
        diagnose(file)
    reference = GraphReference(make(tmp_path / "model"))
    assert diagnose(file, reference=lambda: reference).export.verdict == "right"


@pytest.mark.parametrize(
    ("made", "name"),
    [(Made(scalar="temperature"), "temperature"), (replace(STATIC, write=("slot_offset", "span")), "slot_offset")],
)
def test_an_input_that_nobody_knows_is_named_and_nothing_is_judged(made: Made, name: str, tmp_path: Path) -> None:
    with pytest.raises(DecoderError, match=f"input {name} .*Nobody knows what to feed it"):
        diagnose(make(tmp_path, made))


@pytest.mark.parametrize("made", [Made(bytes=True), replace(STATIC, bytes=True)])
def test_a_cache_in_int8_is_named_and_nothing_is_judged(made: Made, tmp_path: Path) -> None:
    with pytest.raises(DecoderError, match=r"cache in int8 \(past_key_values\.0\.key.*cannot be judged"):
        diagnose(make(tmp_path, made))


def test_a_cache_of_few_places_is_not_judged(tmp_path: Path) -> None:
    with pytest.raises(DecoderError, match="too short to be judged"):
        diagnose(make(tmp_path, Made(static=4)))


@pytest.mark.parametrize("made", [HYBRID, STATIC, replace(STATIC, ids=(1, "sequence"))])
def test_repair_and_serving_leave_it_alone(made: Made, tmp_path: Path) -> None:
    file = make(tmp_path, made)
    done = repair(file, tmp_path / "mended.onnx")
    assert (done.mended, done.left, done.output) == ([], [], None)
    with pytest.raises(ExportError, match="does not fit behind that"):
        repair(file, tmp_path / "again.onnx", reference="none")
    with pytest.raises(DecoderError, match="only caches that grow"):
        GrowingGraph.open(file)

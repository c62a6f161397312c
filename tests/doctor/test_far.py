"""How far along the sequence the doctor looks, what it finds there, and that it says what it did not look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bento_kv.contract.reference import LayerArrays
from bento_kv.doctor.diagnose import diagnose
from bento_kv.doctor.export import far, far_reference
from bento_kv.doctor.records import Diagnosis
from bento_kv.doctor.show.page import render_html
from bento_kv.doctor.show.text import render
from tests.doctor.graphs import GraphReference, Made, make

RIGHT = Made()
SELF = replace(RIGHT, takes_positions=False)


def _against(made: Made, model: Made, folder: Path) -> Diagnosis:
    reference = GraphReference(make(folder / "model", model))
    return diagnose(make(folder / "decoder", made), reference=lambda: reference, reference_name="model")


@pytest.mark.parametrize(
    ("made", "model", "words"),
    [
        (replace(RIGHT, window=64), RIGHT, "sliding window"),
        (RIGHT, replace(RIGHT, window=64), "sliding window"),
        (replace(RIGHT, window=300), RIGHT, "sliding window"),
        (replace(RIGHT, wraps=100), RIGHT, "up to position"),
        (replace(RIGHT, wraps=480), RIGHT, "up to position"),
        (replace(SELF, wraps=100), SELF, "up to position 97"),
    ],
)
def test_what_is_wrong_only_far_along_is_found_with_the_reference(
    made: Made, model: Made, words: str, tmp_path: Path
) -> None:
    whole = _against(made, model, tmp_path)
    assert whole.scenario == "D"
    assert [finding.id for finding in whole.export.findings] == ["numeric-mismatch"]
    assert words in whole.export.findings[0].explain


@pytest.mark.parametrize("made", [RIGHT, SELF, replace(RIGHT, window=64), replace(RIGHT, mask=None)])
def test_the_right_one_is_right_to_the_declared_length(made: Made, tmp_path: Path) -> None:
    whole = _against(made, made, tmp_path)
    reach = whole.measurements.reach
    assert whole.scenario == "C"
    assert reach is not None
    assert (reach.positions, reach.declared, reach.declared_by) == (512, 512, "config.json")


def test_a_table_that_ends_before_the_declared_length_is_found_without_a_reference(tmp_path: Path) -> None:
    for number, made in enumerate((replace(RIGHT, places=300), replace(SELF, places=511))):
        finding = diagnose(make(tmp_path / str(number), replace(made, declared=512))).export.findings[0]
        assert (finding.id, finding.axis) == ("dynamic-axis-baked", "past")
        assert "512 positions" in finding.explain


def test_cached_steps_that_differ_only_far_along_are_found_without_a_reference(tmp_path: Path) -> None:
    finding = diagnose(make(tmp_path, replace(SELF, forgets=100))).export.findings[0]
    assert (finding.id, finding.where) == ("numeric-mismatch", "1 tokens behind a past of 128")


def test_the_sentence_names_what_was_and_what_was_not_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(far, "OPERATIONS", 0)
    monkeypatch.setattr(far, "PAST_BYTES", 1 << 16)
    alone = diagnose(make(tmp_path / "alone", replace(RIGHT, places=2000)))
    said = "Looked at positions up to 12 of 2000 declared (config.json): 12 tokens in steps of every kind"
    for shown in (render(alone, colour=False, width=2000), render_html(alone)):
        assert said in shown
        assert "not looked at: pasts of more than 256 positions" in shown
        assert "--reference" in shown
        assert "the 1988 positions beyond" in shown
        assert "There is nothing to mend, up to position 12 of 2000 declared." in shown
    whole = _against(RIGHT, RIGHT, tmp_path / "reference")
    assert whole.measurements.reach is not None
    assert "--reference" not in whole.measurements.reach.sentence


def test_where_nothing_declares_a_length_none_is_claimed(tmp_path: Path) -> None:
    file = make(tmp_path, RIGHT)
    (tmp_path / "config.json").unlink()
    reach = diagnose(file).measurements.reach
    assert reach is not None
    assert (reach.declared, reach.positions) == (None, 512)
    assert "nothing says where they are" in reach.sentence


class _OtherCache(GraphReference):
    """Keeps its keys and values turned, as a model with latent or rotated keys does."""

    def keys_values(self, ids: Sequence[int]) -> LayerArrays:
        return [(key[..., ::-1], value) for key, value in super().keys_values(ids)]


def test_pasts_are_not_given_to_a_model_that_keeps_others(tmp_path: Path) -> None:
    file, reference = make(tmp_path / "decoder", RIGHT), _OtherCache(make(tmp_path / "model", RIGHT))
    reach = diagnose(file, reference=lambda: reference).measurements.reach
    assert reach is not None
    assert "the reference keeps another cache than the graph" in reach.sentence
    assert "were given to both" not in reach.sentence


def test_where_the_last_bits_of_an_angle_decide_nothing_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(far_reference, "_LAST_BITS", 1.0)
    monkeypatch.setattr(far_reference, "_MOST", 200.0)
    reach = _against(RIGHT, RIGHT, tmp_path / "wide").measurements.reach
    assert reach is not None
    assert "there the last bits of an angle decide" in reach.sentence


def test_where_the_model_itself_ends_before_the_decoder_nobody_is_blamed(tmp_path: Path) -> None:
    whole = _against(RIGHT, replace(RIGHT, places=300), tmp_path)
    assert (whole.scenario, whole.export.findings) == ("C", ())
    reach = whole.measurements.reach
    assert reach is not None
    assert "what the reference has no answer to" in reach.sentence

"""The export alone, asked about again and again: what whoever mends a graph needs to know."""

from __future__ import annotations

from pathlib import Path

import onnx

from bento_kv.doctor.diagnose import check_export


def _declare(file: Path, healthy: Path, **sizes: int) -> None:
    """A copy that declares axes of its pasts fixed."""
    model = onnx.load(healthy)
    for value in model.graph.input:
        if value.name.startswith("past"):
            for axis, size in zip(("batch", "past"), (sizes.get("batch"), sizes.get("past")), strict=True):
                if size is not None:
                    value.type.tensor_type.shape.dim[{"batch": 0, "past": 2}[axis]].dim_value = size
    onnx.save(model, file)


def test_a_right_export_is_right_with_its_numbers(growing_file: Path) -> None:
    judgement = check_export(growing_file)
    assert (judgement.diagnosis.verdict, judgement.diagnosis.findings) == ("right", ())
    assert judgement.vocab_size == 300
    errors = [step.logits for step in judgement.measurements.steps]
    assert judgement.measurements.limit is not None
    assert all(error is not None and error <= judgement.measurements.limit for error in errors)
    assert [step.past_length for step in judgement.measurements.steps][:3] == [0, 4, 5]


def test_a_file_written_anew_is_judged_anew_and_says_which_axes_are_fixed(growing_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    for sizes in ({"batch": 1, "past": 5}, {"past": 5}, {}):
        _declare(file, growing_file, **sizes)
        diagnosis = check_export(file).diagnosis
        assert {finding.axis for finding in diagnosis.findings} == set(sizes)
        assert {finding.id for finding in diagnosis.findings} <= {"dynamic-axis-baked"}
        assert diagnosis.verdict == ("wrong" if sizes else "right")

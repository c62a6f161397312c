"""Right decoders of kinds that are easily taken for faulty ones, and what is wrong with those that are."""

from __future__ import annotations

from pathlib import Path

import pytest

from bento_kv.doctor.diagnose import check_export
from tests.doctor.graphs import Made, make


@pytest.mark.parametrize("window", [1, 2, 3, 4, 5, 11])
def test_a_short_window_that_does_not_see_what_the_mask_hides_is_right(window: int, tmp_path: Path) -> None:
    assert check_export(make(tmp_path, Made(window=window))).diagnosis.findings == ()


@pytest.mark.parametrize("name", ["num_logits_to_keep", "logits_to_keep"])
@pytest.mark.parametrize("shape", [[], [1]])
def test_the_input_that_says_how_many_logits_are_wanted_is_asked_for_all(
    name: str, shape: list[int | str], tmp_path: Path
) -> None:
    assert check_export(make(tmp_path, Made(keep=(name, shape)))).diagnosis.verdict == "right"

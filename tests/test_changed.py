"""Which slow tests a change calls for."""

from __future__ import annotations

import re

import pytest

from tests.changed import COVERED, ROOT, called_for


def test_every_slow_test_is_in_a_folder_that_a_change_can_call_for() -> None:
    marked = re.compile(r"mark\.slow\b|\bslow_but\(")
    files = [file.relative_to(ROOT) for file in (ROOT / "tests").rglob("test_*.py") if marked.search(file.read_text())]
    assert {"/".join(file.parts[:2]) for file in files} - {"tests/test_changed.py"} == set(COVERED)


def test_what_is_covered_is_there() -> None:
    assert all((ROOT / path).exists() for folder, covered in COVERED.items() for path in (folder, *covered))


@pytest.mark.parametrize(
    ("changed", "folders"),
    [
        ([], set()),
        (["README.md", "bento_kv/top/view.py"], set()),
        (["bento_kv/doctor/diagnose.py"], {"tests/mutants"}),
        (["tests/e2e/test_bento.py"], {"tests/e2e"}),
        (
            ["bento_kv/export/exporter.py", "docs/index.md"],
            {"tests/cli", "tests/export", "tests/mutants", "tests/recipes"},
        ),
        (["constraints.txt"], set(COVERED)),
        (None, set(COVERED)),
    ],
)
def test_a_change_calls_for_the_folders_that_cover_it(changed: list[str] | None, folders: set[str]) -> None:
    assert set(called_for(changed)) == folders

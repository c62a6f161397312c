"""The pages themselves: up to date with the code, reachable, wrapped, and without links that lead nowhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from bento_kv.contract.graph_io import STEP_INPUTS, group_inputs
from bento_kv.contract.manifest import Manifest
from bento_kv.contract.verification import Verification
from tests.docs.blocks import DOCS, ROOT
from tools import reference

PAGES = sorted(DOCS.rglob("*.md"))
WRITTEN = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "benchmarks" / "README.md",
    *PAGES,
]
WIDTH = 100


def test_generated_parts_are_what_the_code_says() -> None:
    parts = [name for page in PAGES for name in reference.parts_of(page.read_text(encoding="utf-8"))]
    assert sorted(parts) == sorted(reference.PARTS)
    assert [page for page in PAGES if (text := page.read_text(encoding="utf-8")) != reference.written(text)] == []


def test_every_page_is_in_the_navigation() -> None:
    def named(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [
            page
            for value in entry.values()
            for each in ([value] if isinstance(value, str) else value)
            for page in named(each)
        ]

    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert sorted(page for entry in navigation for page in named(entry)) == [
        str(page.relative_to(DOCS)) for page in PAGES
    ]


def test_the_decoder_directory_is_explained_whole() -> None:
    text = (DOCS / "reference" / "decoder-directory.md").read_text(encoding="utf-8")
    fields = {*Manifest.model_fields, *Verification.model_fields} - {"schema_"}
    inputs = {spec.name for spec in (*STEP_INPUTS, *group_inputs(2))}
    assert {name for name in fields | inputs if f"`{name}`" not in text} == set()


def test_the_readme_fits_on_two_screens() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Pages and anchors within the docs are checked by `make docs` too; here are files and pictures as well."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    local = [target.partition("#")[0] for target in targets if "://" not in target and not target.startswith("#")]
    assert [target for target in local if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_prose_is_wrapped(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    long = [line for line in text.splitlines() if len(line) > WIDTH and not line.lstrip().startswith(("|", "!", "#"))]
    assert long == []

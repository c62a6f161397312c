"""What is imported is declared: for those who serve, and for each extra, no more and no less."""

from __future__ import annotations

import ast
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Whose imports an extra stands for; all other rooms make do with what everybody gets.
ROOMS = {
    "doctor": ("doctor", "repair", "onnx_file.py"),
    "export": ("export", "proof", "repair/adopt.py"),
}
# Not imported by us: what torch's exporter imports, and what transformers reads weights with.
FOR_OTHERS = {"onnxscript", "safetensors"}
# Comes with another package, in the version that this one wants.
PART_OF = {"pydantic-core": "pydantic"}
DISTRIBUTIONS = packages_distributions() | {"google": ["protobuf"], "opentelemetry": ["opentelemetry-api"]}


def declared(extra: str | None) -> set[str]:
    lines = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    found: set[str] = set()
    for requirement in map(Requirement, lines):
        if canonicalize_name(requirement.name) == "bento-kv":
            found = found.union(*(declared(other) for other in requirement.extras))
        else:
            found.add(canonicalize_name(requirement.name))
    return found


def imported(file: Path) -> set[str]:
    """Distributions whose modules a file imports, wherever in the file."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules.add(node.module)
    tops = {module.partition(".")[0] for module in modules} - sys.stdlib_module_names - {"bento_kv"}
    names = {canonicalize_name(DISTRIBUTIONS[top][0]) for top in tops}
    return {PART_OF.get(name, name) for name in names}


def extra_of(file: Path) -> str | None:
    inside = str(file.relative_to(ROOT / "bento_kv"))
    owners = [(len(room), extra) for extra, rooms in ROOMS.items() for room in rooms if inside.startswith(room)]
    return max(owners)[1] if owners else None


FILES = sorted((ROOT / "bento_kv").rglob("*.py"))


@pytest.mark.parametrize("extra", [None, *ROOMS])
def test_what_is_imported_is_declared(extra: str | None) -> None:
    allowed = declared(None) | (declared(extra) if extra else set())
    missing = {
        str(file.relative_to(ROOT)): names
        for file in FILES
        if extra_of(file) == extra and (names := imported(file) - allowed)
    }
    assert not missing


@pytest.mark.parametrize("extra", [None, *ROOMS])
def test_what_is_declared_is_imported(extra: str | None) -> None:
    used: set[str] = set().union(*(imported(file) for file in FILES if extra is None or extra_of(file) is not None))
    assert declared(extra) - used - FOR_OTHERS == set()


def test_each_dependency_has_a_lower_bound() -> None:
    lines = [*PROJECT["dependencies"], *(line for lines in PROJECT["optional-dependencies"].values() for line in lines)]
    unbound = [line for line in lines if not line.startswith("bento-kv[") and ">=" not in line]
    assert not unbound

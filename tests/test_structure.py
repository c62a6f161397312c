"""The shape of the project: arrows between rooms, the public surface, one list of versions."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import yaml

import bento_kv

ROOT = Path(__file__).parents[1]


def test_the_arrows_between_the_rooms_hold() -> None:
    run = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    result = subprocess.run([sys.executable, "-c", run], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout
    assert "0 broken" in result.stdout


def test_the_public_surface() -> None:
    assert bento_kv.__all__ == [
        "EngineConfig",
        "EngineMetrics",
        "LanguageModel",
        "OnnxDecoderRunnable",
        "RequireApiKey",
        "SamplingParams",
        "VerifiedDecoder",
        "__version__",
        "errors",
        "get",
        "load_model",
        "openai_app",
        "save_model",
    ]
    assert all(getattr(bento_kv, name) for name in bento_kv.__all__)


def test_every_error_is_public_and_says_what_a_client_is_answered() -> None:
    own = {name: kind for name, kind in vars(bento_kv.errors).items() if isinstance(kind, type)}
    assert sorted(own) == bento_kv.errors.__all__
    answers = {name: (kind.http_status, kind.error_type) for name, kind in own.items() if kind.http_status != 500}
    assert answers == {
        "ContextLengthError": (400, "invalid_request_error"),
        "TemplateLimitError": (400, "invalid_request_error"),
        "EngineClosedError": (503, "server_error"),
        "OutOfTimeError": (503, "server_error"),
        "UnreadError": (408, "invalid_request_error"),
        "QueueFullError": (429, "rate_limit_error"),
        "RequestError": (400, "invalid_request_error"),
    }


def test_the_service_and_the_examples_use_the_public_surface_only() -> None:
    for file in [ROOT / "service.py", *(ROOT / "examples").glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "bento_kv":
                assert node.module in ("bento_kv", "bento_kv.errors"), f"{file}: {node.module}"
            assert not isinstance(node, ast.Import) or all("bento_kv." not in name.name for name in node.names), file


def _pins(lines: list[str]) -> dict[str, str]:
    return dict(re.fullmatch(r"([A-Za-z0-9_.-]+)==(\S+)", line).groups() for line in lines)  # type: ignore[union-attr]


def test_the_bento_gets_the_tested_versions() -> None:
    constraints = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    tested = {name.lower().replace("_", "-"): version for name, version in _pins(constraints).items()}
    packages = yaml.safe_load((ROOT / "bentofile.yaml").read_text())["python"]["packages"]
    assert all(tested[name] == version for name, version in _pins(packages).items())
    assert "torch" not in _pins(packages)


def test_versions_agree() -> None:
    assert f'version = "{bento_kv.__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert f"## {bento_kv.__version__}" in (ROOT / "CHANGELOG.md").read_text()

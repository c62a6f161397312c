"""`python -m tests.changed`: the folders of tests whose slow tests a change calls for, on one line.

What changed is told by git: since the commit that CI_BASE names, or else since the newest that is a day older than the
last. Where there is none, as in a clone of few commits, all of them are called for.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]

_ALWAYS = ("tests/conftest.py", "tests/decoders.py", "tests/zoo.py", "pyproject.toml", "constraints.txt")
_MADE_BY = ("bento_kv/contract", "bento_kv/export", "bento_kv/onnx_file.py", "bento_kv/source.py")
_RUN_BY = ("bento_kv/proof", "bento_kv/runtime")
# By folder of tests: what its slow tests cover, besides the folder itself.
COVERED: dict[str, tuple[str, ...]] = {
    "tests/cli": ("bento_kv/cli", *_MADE_BY, *_RUN_BY),
    "tests/e2e": ("bento_kv/bento", "bento_kv/engine", "bento_kv/server", "bentofile.yaml", "service.py"),
    "tests/export": (*_MADE_BY, *_RUN_BY),
    "tests/mutants": ("bento_kv/doctor", *_MADE_BY, *_RUN_BY),
    "tests/packaging": ("bento_kv/bento", "bento_kv/cli", "bento_kv/__init__.py"),
    "tests/recipes": ("bento_kv/demo", "recipes", *_MADE_BY, *_RUN_BY),
    "tests/server": ("bento_kv/engine", "bento_kv/server"),
    "tests/text": ("bento_kv/text",),
}


def called_for(changed: Iterable[str] | None) -> list[str]:
    """Folders of `COVERED` whose slow tests have to run.

    Args:
        changed: files, as paths below the root; None if nobody knows.
    """
    if changed is None:
        return list(COVERED)
    files = list(changed)

    def touched(paths: Iterable[str]) -> bool:
        return any(file == path or file.startswith(f"{path}/") for file in files for path in paths)

    return [folder for folder, covered in COVERED.items() if touched((*_ALWAYS, folder, *covered))]


def changed_files() -> list[str] | None:
    """Files that differ from the base; None if there is no base."""
    try:
        base = os.environ.get("CI_BASE") or _day_before(_git("log", "-1", "--format=%ct"))
        return _git("diff", "--name-only", f"{base}...HEAD").splitlines() if base else None
    except (OSError, subprocess.CalledProcessError):
        return None


def _day_before(seconds: str) -> str:
    return _git("log", "-1", "--format=%H", f"--before=@{int(seconds) - 86400}")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    print(*called_for(changed_files()))

"""The wheel in environments of their own, as users install it: with nothing else, and with each extra alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.server import serving

ROOT = Path(__file__).parents[2]
QUESTION, ANSWER = "What is 17 + 25?", "42"

Installed = Callable[[str], Path]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", folder, ROOT], check=True)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def install(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Makes an environment that has the wheel with an extra, or with none: its folder of programs."""

    def make(extra: str) -> Path:
        home = tmp_path_factory.mktemp("environment")
        venv.create(home, with_pip=True)
        what = f"{wheel}[{extra}]" if extra else str(wheel)
        pip = [home / "bin" / "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--constraint", ROOT / "constraints.txt", what], check=True)
        return home / "bin"

    return make


def run(bin: Path, *command: str | Path, folder: Path, code: int = 0) -> str:
    """What a program of that environment prints, run in a folder that has none of the repository."""
    environment = {**os.environ, "BENTOML_HOME": str(folder / "bentoml")}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run([bin / command[0], *command[1:]], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_what_is_in_the_wheel(wheel: Path) -> None:
    assert wheel.stat().st_size < 6 * 2**20
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"bento_kv"}


@pytest.mark.slow
def test_without_extras_it_serves(install: Installed, demo_decoder: Path, tmp_path: Path) -> None:
    bin = install("")
    script = (
        "import sys, bento_kv; [getattr(bento_kv, name) for name in bento_kv.__all__]; print('torch' in sys.modules)"
    )
    assert run(bin, "python", "-c", script, folder=tmp_path).endswith("False\n")
    assert "Export, prove and serve" in run(bin, "bento-kv", "--help", folder=tmp_path)
    assert ANSWER in run(bin, "bento-kv", "generate", demo_decoder, QUESTION, folder=tmp_path)
    told = run(bin, "bento-kv", "doctor", demo_decoder, folder=tmp_path, code=2)
    assert "pip install 'bento-kv[doctor]'" in told
    told = run(bin, "bento-kv", "export", "demo", "-o", "decoder", folder=tmp_path, code=2)
    assert "pip install 'bento-kv[export]'" in told
    with serving(
        "bento_kv.bento.service:LanguageModel",
        "--arg",
        f"model={demo_decoder}",
        log=tmp_path / "log",
        bentoml=bin / "bentoml",
        environment={"BENTOML_HOME": str(tmp_path / "bentoml"), "PYTHONPATH": ""},
        directory=tmp_path,
    ) as server:
        assert "requests" in run(bin, "bento-kv", "top", server.url, "--once", folder=tmp_path)


@pytest.mark.slow
def test_with_doctor_it_diagnoses_and_mends(install: Installed, growing_file: Path, tmp_path: Path) -> None:
    bin = install("doctor")
    diagnosis = json.loads(run(bin, "bento-kv", "doctor", growing_file, "--json", folder=tmp_path))
    assert diagnosis["scenario"] == "C"
    told = run(bin, "bento-kv", "doctor", growing_file, "--reference", "demo", folder=tmp_path, code=2)
    assert "pip install 'bento-kv[export]'" in told
    assert "nothing" in run(bin, "bento-kv", "repair", growing_file, "-o", "mended.onnx", folder=tmp_path)


@pytest.mark.slow
def test_with_export_it_exports_and_proves(install: Installed, tmp_path: Path) -> None:
    bin = install("export")
    run(bin, "bento-kv", "export", "demo", "-o", "decoder", folder=tmp_path)
    assert "Proof passed" in run(bin, "bento-kv", "verify", "decoder", folder=tmp_path)
    run(bin, "bento-kv", "save", "decoder", "demo", folder=tmp_path)
    assert ANSWER in run(bin, "bento-kv", "generate", "demo", QUESTION, folder=tmp_path)

"""Processes that are killed at random moments: the next start works, and what they left is gone."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bento_kv import disk
from bento_kv.bento.store import _store, save_model, versions
from bento_kv.contract.verification import check_proof
from bento_kv.export.exporter import export
from tests import decoders
from tests.e2e.server import ROOT, serving

KILLS = int(os.environ.get("BENTO_KV_KILLS", "3"))  # a run by hand may take more
pytestmark = pytest.mark.slow


def seconds_of(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def kill_during(work: Callable[[], object], after: float) -> None:
    """Do the work in a child that is killed after so many seconds, if it is not done by then."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def left_in(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.iterdir() if disk.is_part(path.name)]


def models_list() -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "bentoml"), "models", "list"]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_saves(tiny_decoder: Path) -> None:
    chance = random.Random(0)

    def save() -> object:
        return save_model("tiny-killed", tiny_decoder)

    whole = seconds_of(save)
    for _ in range(KILLS):
        kill_during(save, chance.uniform(0, whole))
        for model in versions("tiny-killed"):
            check_proof(Path(model.path))
    assert models_list().returncode == 0
    check_proof(Path(save_model("tiny-killed", tiny_decoder).path))
    assert not left_in(_store().parent, _store() / "tiny-killed")


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.usefixtures("traced_once")
def test_exports(force: bool, tmp_path: Path) -> None:
    """What is there is always whole; with `force`, there always is something."""
    chance, target, source = random.Random(1), tmp_path / "decoder", str(decoders.source(num_hidden_layers=1))
    whole = seconds_of(lambda: export(source, tmp_path / "first"))  # traces, which those after it take over
    whole = min(whole, seconds_of(lambda: export(source, target)))

    def check() -> None:
        from bento_kv.contract.manifest import Manifest

        Manifest.read(target).check_files(target)

    for _ in range(KILLS):
        if not force:
            shutil.rmtree(target, ignore_errors=True)
        kill_during(lambda: export(source, target, force=force), chance.uniform(0, whole))
        if force or target.exists():
            check()
    export(source, target, force=True)
    check()
    assert not left_in(tmp_path)


def _bentoml(*arguments: str, home: Path, killed_after: float | None = None, log: Path) -> int | None:
    """Run bentoml in a store of its own; its exit status, or None if it was killed before its end."""
    environment = {**os.environ, "BENTOML_HOME": str(home), "TMPDIR": str(home / "tmp")}
    (home / "tmp").mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / "bentoml"), *arguments],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            return process.wait(600 if killed_after is None else killed_after)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return None


def test_builds(tmp_path: Path) -> None:
    """Each from a store in which the ones before left what they left."""
    chance, log, home = random.Random(2), tmp_path / "log", tmp_path / "home"
    source = decoders.source(num_hidden_layers=1)
    command = ("build", "--arg", f"model={source}")
    whole = seconds_of(lambda: _bentoml(*command, home=tmp_path / "other", log=log))
    for _ in range(KILLS):
        _bentoml(*command, home=home, killed_after=chance.uniform(0, whole), log=log)
    assert _bentoml(*command, home=home, log=log) == 0, log.read_text()[-3000:]
    for listed in ("models", "list"), ("list",):
        assert _bentoml(*listed, home=home, log=log) == 0, log.read_text()[-3000:]
    assert not left_in(home, *(home / "models").iterdir(), home / "tmp")


def test_serves(tmp_path: Path) -> None:
    """Killed while they export, store and serve: the next one serves."""
    chance, home = random.Random(3), tmp_path / "home"
    arguments = ("service:LanguageModel", "--arg", f"model={decoders.source(num_hidden_layers=1)}")

    def starts(home: Path) -> None:
        (home / "tmp").mkdir(parents=True, exist_ok=True)
        environment = {"BENTOML_HOME": str(home), "TMPDIR": str(home / "tmp")}
        with serving(*arguments, log=tmp_path / "log", environment=environment):
            pass

    whole = seconds_of(lambda: starts(tmp_path / "other"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = ("serve", *arguments, "--host", "127.0.0.1", "--port", port)
    for _ in range(KILLS):
        assert _bentoml(*command, home=home, killed_after=chance.uniform(0, whole), log=tmp_path / "killed") is None
    starts(home)
    assert not left_in(home, *(home / "models").iterdir(), home / "tmp")

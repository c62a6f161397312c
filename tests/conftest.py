"""Shared parts: a model store of the tests' own, and small decoders that are exported and proven once."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import decoders
from tests.effort import set_effort

# Before bentoml is imported: the user's own model store is none of the tests' business.
os.environ["BENTOML_HOME"] = tempfile.mkdtemp(prefix="bento_kv-tests-")
os.environ["BENTOML_DO_NOT_TRACK"] = "True"
os.environ["HF_HUB_OFFLINE"] = "1"
_LONGEST_FIRST = ("e2e", "export", "mutants", "proof", "cli", "bento", "recipes", "laws", "repair", "doctor")
_CPUS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
# Before torch is imported: test processes that share cores wait for each other's threads, so that each gets one core.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if _CPUS:
        os.sched_setaffinity(0, {_CPUS[int(worker.removeprefix("gw")) % len(_CPUS)]})


def pytest_configure(config: pytest.Config) -> None:
    set_effort(everything=config.option.markexpr != "not slow")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: processes take a file each, and none shall begin a long one when the others are done."""
    rank = {folder: place for place, folder in enumerate(_LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.parent.name, len(rank)))


def pytest_sessionfinish(session: pytest.Session) -> None:
    shutil.rmtree(os.environ["BENTOML_HOME"], ignore_errors=True)
    if not hasattr(session.config, "workerinput"):
        decoders.forget_old()


@pytest.fixture
def all_cpus() -> Iterator[None]:
    """Every core, as a user's process has them, for tests of what several threads compute."""
    if not _CPUS:
        yield
        return
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, _CPUS)
    yield
    os.sched_setaffinity(0, own)


@pytest.fixture
def traced_once() -> Iterator[None]:
    """Exports of a model that this process has traced before take that trace, and do the rest."""
    with decoders.traced_once():
        yield


@pytest.fixture(scope="session")
def tiny_source() -> Path:
    """A random Llama of two layers, as a user would have a model; read only."""
    return decoders.source()


@pytest.fixture
def tiny_decoder(tmp_path: Path) -> Path:
    """A proven decoder directory that a test may damage."""
    return Path(shutil.copytree(decoders.proven(), tmp_path / "tiny"))


@pytest.fixture(scope="session")
def demo_decoder() -> Path:
    """The demo model, exported and proven; read only."""
    return decoders.proven(decoders.DEMO)


@pytest.fixture(scope="session")
def growing_file() -> Path:
    """The tiny Llama as other exporters write it: a past in, a grown one out; read only."""
    return decoders.growing()

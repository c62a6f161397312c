"""Shared parts: a model store of the tests' own, and small decoders that are exported and proven once."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

# Before bentoml is imported: the user's own model store is none of the tests' business.
os.environ["BENTOML_HOME"] = tempfile.mkdtemp(prefix="bento_kv-tests-")
os.environ["BENTOML_DO_NOT_TRACK"] = "True"
os.environ["HF_HUB_OFFLINE"] = "1"
# Before torch is imported: where test processes share the cores, threads of torch wait for each other, a fifth of the time.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_sessionfinish() -> None:
    shutil.rmtree(os.environ["BENTOML_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers, as a user would have a model."""
    from tests.zoo import save_model

    return save_model(tmp_path_factory.mktemp("source") / "tiny-llama", "llama")


@pytest.fixture(scope="session")
def _tiny_proven(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from bento_kv.export.exporter import export
    from bento_kv.proof.parity import TorchReference
    from bento_kv.proof.proof import prove

    directory = tmp_path_factory.mktemp("decoder") / "tiny"
    export(str(tiny_source), directory)
    assert prove(directory, lambda manifest: TorchReference(str(tiny_source), manifest)).passed
    return directory


@pytest.fixture
def tiny_decoder(_tiny_proven: Path, tmp_path: Path) -> Path:
    """A proven decoder directory that a test may damage."""
    copy = tmp_path / "tiny"
    shutil.copytree(_tiny_proven, copy)
    return copy


@pytest.fixture(scope="session")
def demo_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, exported and proven; read only."""
    from bento_kv.export.exporter import export
    from bento_kv.proof.parity import TorchReference
    from bento_kv.proof.proof import prove

    directory = tmp_path_factory.mktemp("decoder") / "demo"
    export("demo", directory)
    assert prove(directory, lambda manifest: TorchReference("demo", manifest)).passed
    return directory


@pytest.fixture(scope="session")
def growing_file(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama as other exporters write it: a past in, a grown one out; read only."""
    from bento_kv.export.growing import export_growing

    file = tmp_path_factory.mktemp("growing") / "model.onnx"
    export_growing(str(tiny_source), file)
    return file

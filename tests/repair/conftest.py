"""A decoder of the common layout, and its model."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.zoo import save_model

    return save_model(tmp_path_factory.mktemp("repair") / "llama", "llama")


@pytest.fixture(scope="session")
def common(source: Path, tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    from bento_kv.export.growing import export_growing

    file = tmp_path_factory.mktemp("repair") / "model.onnx"
    export_growing(str(source), file)
    return onnx.load(file)

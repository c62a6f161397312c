"""A decoder of the common layout, and its model."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from tests import decoders


@pytest.fixture(scope="session")
def source() -> Path:
    return decoders.source()


@pytest.fixture(scope="session")
def common() -> onnx.ModelProto:
    return onnx.load(decoders.growing())

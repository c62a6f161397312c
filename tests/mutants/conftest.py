"""The decoders of this folder, read once for all its tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants.decoders import Decoders
from tests.mutants.healthy import Healthy
from tests.mutants.outcomes import LOOP_DECODERS


@pytest.fixture(scope="session")
def decoders() -> Decoders:
    return Decoders()


@pytest.fixture(scope="session")
def loop_targets(decoders: Decoders, tmp_path_factory: pytest.TempPathFactory) -> dict[Healthy, Path]:
    """What loops are run on; read only."""
    targets = {decoder: tmp_path_factory.mktemp(decoder.base) for decoder in LOOP_DECODERS}
    for decoder, target in targets.items():
        decoder.write(decoders, target)
    return targets

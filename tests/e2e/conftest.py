"""The demo's decoder lies in the model store of the tests, as it does on a machine that has served it before."""

from __future__ import annotations

import pytest

from tests import decoders


@pytest.fixture(scope="session", autouse=True)
def stored_demo() -> None:
    decoders.stored(decoders.DEMO)

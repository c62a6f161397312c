from __future__ import annotations

from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.server.world import JSON, World, serving


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    with serving() as running:
        yield running


@pytest.fixture(scope="session")
def client(world: World) -> Iterator[openai.OpenAI]:
    with world.client() as client:
        yield client


@pytest.fixture(scope="session")
def http(world: World) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=world.url, timeout=60, headers=JSON) as client:
        yield client

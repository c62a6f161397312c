"""`priority` and `cache_salt` over HTTP: they reach the engine, and what they may be."""

from __future__ import annotations

import httpx
import pytest

from bento_kv.engine.observer import NullObserver
from tests.server.world import MODEL, serving

BODY = {"model": MODEL, "prompt": "say:a long and winding prompt|", "max_tokens": 2}
PROMPT_TOKENS = 30


class Hits(NullObserver):
    def __init__(self) -> None:
        self.hits: list[int] = []

    def prefix_cache(self, query_tokens: int, hit_tokens: int) -> None:
        self.hits.append(hit_tokens)


def test_prompts_are_shared_with_the_same_salt_only() -> None:
    observer = Hits()
    with serving(observer=observer) as world, httpx.Client(base_url=world.url) as http:
        for salt in (None, "one", "two", "one", None):
            assert http.post("/v1/completions", json={**BODY, "cache_salt": salt}).status_code == 200
        world.wait_until_idle()
    assert observer.hits == [0, 0, 0, PROMPT_TOKENS - 2, PROMPT_TOKENS - 2]


def test_the_choices_of_an_answer_share_their_prompt() -> None:
    observer = Hits()
    with serving(observer=observer) as world, httpx.Client(base_url=world.url) as http:
        answer = http.post("/v1/completions", json={**BODY, "n": 3}).json()
        world.wait_until_idle()
    assert [choice["text"] for choice in answer["choices"]] == ["a "] * 3
    assert observer.hits == [0, PROMPT_TOKENS - 2, PROMPT_TOKENS - 2]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("priority", 101),
        ("priority", -101),
        ("priority", 0.5),
        ("priority", True),
        ("cache_salt", ""),
        ("cache_salt", 1),
    ],
)
def test_values_out_of_range_are_refused_with_the_name(http: httpx.Client, field: str, value: object) -> None:
    response = http.post("/v1/completions", json={**BODY, field: value})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field


@pytest.mark.parametrize(("allowed", "asked"), [(0, 0), (0, 100), (-100, -100)])
def test_a_priority_is_taken(allowed: int, asked: int) -> None:
    with serving(app_options={"min_priority": allowed}) as world:
        answer = httpx.post(f"{world.url}/v1/completions", json={**BODY, "priority": asked})
    assert answer.status_code == 200

"""Requests that run out of time: in the queue, before their first token, in the middle."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from bento_kv.engine.deadlines import Deadlines
from bento_kv.engine.generation import Generation
from bento_kv.engine.request import Request, SamplingParams
from bento_kv.server.problems import problem_of
from tests.engine.faulty import FaultyDecoder, Hang
from tests.server.test_life import ENDLESS, send
from tests.server.world import JSON, MODEL, ByteTokenizer, World, serving

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "go on"}]}
BOTH = pytest.mark.parametrize(
    ("path", "body"), [("completions", ENDLESS), ("chat/completions", CHAT)], ids=["completions", "chat"]
)


@pytest.fixture
def busy_world() -> Iterator[World]:
    """One slot, and it is taken."""
    with serving(slots=1) as world:
        taking = send(world, ENDLESS)
        world.wait_until(lambda stats: stats.running == 1)
        yield world
        taking.close()


@BOTH
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("field", ["max_queue_time", "max_time"])
def test_a_deadline_in_the_queue_is_503(busy_world: World, path: str, body: dict[str, Any], n: int, field: str) -> None:
    response = httpx.post(f"{busy_world.url}/v1/{path}", json={**body, "n": n, field: 0.05}, timeout=60)
    assert response.status_code == 503
    assert response.json()["error"]["type"] == "server_error"
    assert response.json()["error"]["code"] == "queue_timeout"
    assert int(response.headers["retry-after"]) >= 1
    busy_world.wait_until(lambda stats: (stats.running, stats.waiting) == (1, 0))
    assert busy_world.observer.reasons == ["abort"] * n


def test_a_deadline_in_the_queue_ends_a_stream_with_an_error(busy_world: World) -> None:
    with busy_world.client() as client:
        stream = client.completions.create(**ENDLESS, stream=True, extra_body={"max_queue_time": 0.05})
        with pytest.raises(openai.APIError, match="waited for a free slot") as caught:
            list(stream)
    assert caught.value.code == "queue_timeout"


def test_the_openai_client_tries_again_after_a_deadline(busy_world: World) -> None:
    """As it does for status 503 of its own accord."""
    with busy_world.client() as client, pytest.raises(openai.InternalServerError) as caught:
        client.with_options(max_retries=1).completions.create(**ENDLESS, extra_body={"max_queue_time": 0.05})
    assert caught.value.status_code == 503
    assert busy_world.observer.reasons == ["abort"] * 2


@BOTH
@pytest.mark.parametrize("n", [1, 2])
def test_a_deadline_on_the_way_cuts_the_answer(world: World, path: str, body: dict[str, Any], n: int) -> None:
    whole = httpx.post(
        f"{world.url}/v1/{path}", json={**body, "n": n, "seed": 1, "max_tokens": 20_000, "max_time": 0.4}
    )
    for choice in whole.json()["choices"]:
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        assert choice["finish_reason"] == "length"
        again = httpx.post(
            f"{world.url}/v1/{path}", json={**body, "n": n, "seed": 1, "max_tokens": len(text)}, timeout=60
        )
        other = again.json()["choices"][choice["index"]]
        assert text
        assert text == (other["message"]["content"] if "message" in other else other["text"])


def test_a_deadline_on_the_way_ends_a_stream_as_a_limit_does(world: World) -> None:
    with world.client() as client:
        chunks = list(client.completions.create(**ENDLESS, stream=True, extra_body={"max_time": 0.2}))
    assert chunks[-1].choices[0].finish_reason == "length"
    assert "".join(chunk.choices[0].text for chunk in chunks)
    world.wait_until_idle()


def test_a_step_that_outlasts_the_deadline_still_gives_its_token() -> None:
    hang = Hang(step=0)
    with serving(wrap=lambda decoder: FaultyDecoder(decoder, hang)) as world:
        connection = send(world, {**ENDLESS, "max_time": 0.05})
        assert hang.began.wait(60)
        world.wait_until(lambda stats: stats.running == 1)
        hang.release()
        received = b""
        while b'"length"' not in received:
            received += connection.recv(65536)
        connection.close()


def test_a_deadline_before_the_first_token_is_no_answer() -> None:
    """As in the middle of a long prompt."""
    request = Request(
        id="r", prompt_ids=(1, 2), params=SamplingParams(), emit=lambda output: None, deadlines=Deadlines(max_time=1)
    )
    generation = Generation(request, 5, ByteTokenizer().decode, deadlines=request.deadlines)
    generation.admitted = generation.arrived
    output = generation.time_out()
    assert (output.finish_reason, output.timeout) == ("abort", "total")
    assert output.failure is not None
    problem = problem_of(output.failure, request_id="req_1")
    assert (problem.status, problem.code) == (503, "request_timeout")


@pytest.mark.parametrize("field", ["max_time", "max_queue_time"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "above 0"),
        (-1, "above 0"),
        ("5", "number"),
        (True, "number"),
        (61, "at most 60 seconds"),
    ],
)
def test_a_deadline_out_of_range_is_400(field: str, value: object, message: str) -> None:
    with serving(config={"max_seconds": 60, "max_queue_seconds": 60}) as world:
        response = httpx.post(f"{world.url}/v1/completions", json={**ENDLESS, field: value})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field
    assert message in response.json()["error"]["message"]


def test_infinity_is_not_a_deadline(world: World) -> None:
    content = json.dumps({**ENDLESS, "max_time": 0}).replace('"max_time": 0', '"max_time": 1e999')
    assert httpx.post(f"{world.url}/v1/completions", content=content, headers=JSON).status_code == 400


def test_the_servers_deadlines_hold_for_requests_without_their_own() -> None:
    with serving(slots=1, config={"max_queue_seconds": 0.05, "max_seconds": 30.0}) as world, world.client() as client:
        taking = send(world, ENDLESS)
        world.wait_until(lambda stats: stats.running == 1)
        with pytest.raises(openai.InternalServerError) as caught:
            client.completions.create(**ENDLESS)
        assert caught.value.code == "queue_timeout"
        taking.close()
    with serving(config={"max_seconds": 0.2}) as world, world.client() as client:
        assert client.completions.create(**ENDLESS).choices[0].finish_reason == "length"

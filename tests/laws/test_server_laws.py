"""Law 8 over HTTP: nothing a client sends can end the process, block others for longer than its own work, or be
ignored silently."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bento_kv.server import protocol
from tests.effort import examples
from tests.server.world import JSON, MODEL, ByteTokenizer, World, serving

BODIES: dict[str, tuple[dict[str, Any], type[protocol.Body]]] = {
    "/v1/chat/completions": ({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}, protocol.ChatRequest),
    "/v1/completions": ({"model": MODEL, "prompt": "hi"}, protocol.CompletionRequest),
    "/v1/tokenize": ({"prompt": "hi"}, protocol.TokenizeRequest),
    "/v1/detokenize": ({"tokens": [104, 105]}, protocol.DetokenizeRequest),
}
PATHS = st.sampled_from(sorted(BODIES))
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.sampled_from([-1, 0, 1, 2, 256, 257, 2**31, 2**63])
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text(max_size=12)
    | st.sampled_from(["text", "user", "assistant", MODEL, "say:ok|", "\ud800", "\x00"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
)
FUZZ = settings(max_examples=examples(150), deadline=None)


@pytest.fixture(scope="module")
def small_world() -> Iterator[World]:
    """A context so short that every answer ends soon."""
    with serving(max_length=48, before_step=lambda plan: None) as running:
        yield running


@pytest.fixture(scope="module")
def http(small_world: World) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=small_world.url, timeout=60, headers=JSON) as client:
        yield client


def check(http: httpx.Client, path: str, content: bytes) -> httpx.Response:
    """Send a body: it is served or refused in OpenAI's form, and then the server still serves."""
    response = http.post(path, content=content)
    if b'"max_time"' in content or b'"max_queue_time"' in content:  # who asks for a moment may not get an answer in it
        body = response.text
        if "queue_timeout" in body or "request_timeout" in body:
            assert response.status_code in (200, 503)
            return response
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        error = response.json()["error"]
        assert (response.status_code == 404) == (error["code"] == "model_not_found")
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"
        assert error["message"]
    elif response.headers["content-type"].startswith("text/event-stream"):
        assert response.text.endswith("data: [DONE]\n\n")
    else:
        assert "error" not in response.json()
    return response


@FUZZ
@given(path=PATHS, data=st.data())
def test_any_values_of_known_fields_are_served_or_refused(http: httpx.Client, path: str, data: st.DataObject) -> None:
    body, kind = BODIES[path]
    names = st.sampled_from(sorted({*kind.model_fields, *kind.refused}))
    changes = data.draw(st.dictionaries(names, VALUES, min_size=1, max_size=4))
    check(http, path, json.dumps({**body, **changes}).encode())


@FUZZ
@given(
    turns=st.lists(
        st.dictionaries(st.sampled_from(["role", "content", "name", "tool_calls", "refusal"]), VALUES) | VALUES,
        max_size=3,
    )
)
def test_any_messages_are_served_or_refused(http: httpx.Client, turns: list[Any]) -> None:
    check(http, "/v1/chat/completions", json.dumps({"model": MODEL, "messages": turns}).encode())


@FUZZ
@given(path=PATHS, document=VALUES)
def test_any_json_is_served_or_refused(http: httpx.Client, path: str, document: Any) -> None:
    check(http, path, json.dumps(document).encode())


@FUZZ
@given(path=PATHS, data=st.data())
def test_any_bytes_are_served_or_refused(http: httpx.Client, path: str, data: st.DataObject) -> None:
    whole = json.dumps(BODIES[path][0]).encode()
    cut = data.draw(st.integers(0, len(whole)))
    check(http, path, whole[:cut] + data.draw(st.binary(max_size=8)) + whole[cut:])


@FUZZ
@given(path=PATHS, name=st.text(min_size=1, max_size=20), value=SCALARS)
def test_no_name_is_ignored(http: httpx.Client, path: str, name: str, value: Any) -> None:
    body, kind = BODIES[path]
    if name in kind.model_fields or name in kind.refused:
        return
    response = check(http, path, json.dumps({**body, name: value}).encode())
    assert response.status_code == 400


def test_the_server_still_serves_after_all_that(http: httpx.Client, small_world: World) -> None:
    small_world.wait_until_idle()
    assert small_world.engine.accepting
    answer = http.post("/v1/completions", json={"model": MODEL, "prompt": "say:fine|"}).json()
    assert answer["choices"][0]["text"] == "fine"


class SlowTokenizer(ByteTokenizer):
    """Takes a prompt that says so for as long as a very long one would, until told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def encode(self, text: str, *, add_special_tokens: bool = True, room: int | None = None) -> list[int]:
        if "slow" in text:
            self.begun.set()
            assert self.go_on.wait(120), "nobody let the tokenizer go on"
        return super().encode(text, add_special_tokens=add_special_tokens)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/tokenize", "/v1/chat/completions"])
def test_a_long_tokenization_does_not_hold_up_others(path: str) -> None:
    body = {**BODIES[path][0], "prompt": "slow"}
    if "chat" in path:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "slow"}], "max_tokens": 1}
    tokenizer = SlowTokenizer()
    answers: list[int] = []
    with serving(tokenizer=tokenizer, max_length=64) as world:

        def ask() -> None:
            answers.append(httpx.post(world.url + path, json=body, timeout=120).status_code)

        slow = threading.Thread(target=ask)
        slow.start()
        assert tokenizer.begun.wait(60)
        quick = httpx.post(f"{world.url}/v1/completions", json={"model": MODEL, "prompt": "say:quick|"}, timeout=60)
        assert quick.json()["choices"][0]["text"] == "quick"
        assert answers == []
        tokenizer.go_on.set()
        slow.join(60)
        assert answers == [200]


def test_a_client_that_does_not_read_or_does_not_finish_holds_up_nobody() -> None:
    with serving(max_length=5000) as world:
        body = json.dumps({"model": MODEL, "prompt": "go on", "stream": True, "n": 2}).encode()
        deaf = socket.create_connection(world.address, timeout=60)
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            % len(body)
            + body
        )
        world.wait_until(lambda stats: stats.running == 2)
        mute = socket.create_connection(world.address, timeout=60)
        mute.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"
        )
        quick = httpx.post(f"{world.url}/v1/completions", json={"model": MODEL, "prompt": "say:quick|"}, timeout=60)
        assert quick.json()["choices"][0]["text"] == "quick"
        for connection in (deaf, mute):
            connection.close()
        world.wait_until_idle()


def test_the_largest_bodies_of_errors_make_one_short_error(http: httpx.Client) -> None:
    many = [
        {"model": MODEL, "messages": [5] * 400_000},
        {"model": MODEL, "messages": [{"role": "user", "content": [5] * 400_000}]},
        {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **{f"x{i}": 0 for i in range(80_000)}},
        {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stop_token_ids": ["a"] * 150_000},
        {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "x" * 900_000: 0},
        {"model": "x" * 900_000, "messages": [{"role": "user", "content": "hi"}]},
    ]
    for body in many:
        content = json.dumps(body, separators=(",", ":")).encode()
        assert len(content) < 2**20
        assert len(check(http, "/v1/chat/completions", content).content) < 1000

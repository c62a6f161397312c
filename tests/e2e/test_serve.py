"""`bentoml serve` on the demo model, as a user runs it, with a real openai client."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from tests.e2e.server import ROOT, Server, serving

RECALL = "The code for the red door is 4821. The code for the blue door is 1177. What is the code for the red door?"
SUM = "What is 17 + 25?"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("serve") / "log"
    with serving("service:LanguageModel", "--arg", "slots=8", "--arg", "max_queue=40", log=log) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)


def _ask(client: openai.OpenAI, question: str) -> str:
    reply = client.chat.completions.create(model="demo", messages=[{"role": "user", "content": question}])
    assert reply.choices[0].finish_reason == "stop"
    return reply.choices[0].message.content or ""


def _ask_streaming(client: openai.OpenAI, question: str) -> str:
    chunks = client.chat.completions.create(model="demo", messages=[{"role": "user", "content": question}], stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


@pytest.mark.parametrize(("question", "answer"), [(RECALL, "4821"), (SUM, "42")])
def test_right_answers_streaming_and_not(client: openai.OpenAI, question: str, answer: str) -> None:
    assert answer in _ask(client, question)
    assert _ask_streaming(client, question) == _ask(client, question)


def test_the_example_client_streams_an_answer(server: Server) -> None:
    command = [sys.executable, "examples/client.py", server.url, SUM]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert run.stdout == "42\n"


def test_a_conversation_of_several_turns(client: openai.OpenAI) -> None:
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "The code for the garden gate is 5307."},
        {"role": "assistant", "content": "Noted."},
        {"role": "user", "content": "What is the code for the garden gate?"},
    ]
    reply = client.chat.completions.create(model="demo", messages=messages)  # type: ignore[arg-type]
    assert "5307" in (reply.choices[0].message.content or "")


def test_32_clients_get_what_one_alone_gets_bit_for_bit(client: openai.OpenAI) -> None:
    def ask(number: int) -> tuple[str, tuple[tuple[str, float], ...]]:
        names = ["red", "blue", "green", "black"]
        facts = " ".join(f"The code for the {name} door is {1000 + 7 * i + number}." for i, name in enumerate(names))
        question = f"{facts} What is the code for the {names[number % 4]} door?"
        reply = client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": question}],
            logprobs=True,
            top_logprobs=5,
        )
        choice = reply.choices[0]
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        details = tuple((top.token, top.logprob) for token in choice.logprobs.content for top in token.top_logprobs)
        return choice.message.content or "", details

    alone = [ask(number) for number in range(32)]
    with ThreadPoolExecutor(32) as pool:
        together = list(pool.map(ask, range(32)))
    assert together == alone


def test_the_proof_is_served_and_counted(server: Server, client: openai.OpenAI) -> None:
    proof = httpx.get(f"{server.url}/v1/verification").json()
    assert proof["schema"] == "bento_kv.verification/1"
    assert proof["passed"] is True
    assert {check["id"] for check in proof["loop"]["checks"]} >= {"cached-equals-uncached-full", "greedy-tokens"}
    _ask(client, SUM)
    metrics = httpx.get(f"{server.url}/metrics").text
    assert f'bento_kv_verification_info{{manifest="{proof["manifest_sha256"]}",passed="true"}} 1.0' in metrics
    assert 'bento_kv_request_success_total{finished_reason="stop"}' in metrics


@pytest.mark.parametrize("more", [{}, {"priority": 1, "cache_salt": "mine"}])
def test_the_native_endpoint_streams_text(server: Server, more: dict[str, object]) -> None:
    with httpx.stream("POST", f"{server.url}/generate", json={"prompt": SUM, **more}, timeout=60) as response:
        assert response.status_code == 200
        assert "".join(response.iter_text()).strip() == "42"


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"prompt": "Hi", "max_tokens": 5000}, 400, "1024"),
        ({"prompt": "x" * 2000}, 400, "1024"),
        ({"prompt": "Hi", "max_tokens": 0}, 400, "max_tokens"),
        ({"prompt": "Hi", "top_k": 3}, 400, "top_k"),
        ({"prompt": "Hi", "priority": 101}, 400, "priority"),
        ({"prompt": "Hi", "priority": -1}, 403, "min_priority"),
        ({"prompt": "Hi", "max_time": 0}, 400, "max_time"),
        ({"prompt": "Hi", "max_time": 1e-9}, 503, "error"),  # BentoML keeps the words of a 5xx to itself
        ({}, 400, "prompt"),
    ],
)
def test_the_native_endpoint_says_what_is_wrong(
    server: Server, body: dict[str, object], status: int, message: str
) -> None:
    response = httpx.post(f"{server.url}/generate", json=body, timeout=60)
    assert response.status_code == status
    assert message in response.text


def test_clients_that_leave_before_an_answer_leave_nothing_behind(server: Server) -> None:
    """BentoML's own count of requests in progress goes back to none, and with it the server's readiness to end."""
    body = json.dumps({"model": "demo", "prompt": "Hello", "max_tokens": 1000, "ignore_eos": True}).encode()
    address = urlsplit(server.url)
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {address.netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    for _ in range(5):
        # Nothing is read: a client with a timeout may be given the answer after all, if it sleeps through it.
        with socket.create_connection((address.hostname, address.port)) as client:
            client.sendall(head.encode() + body)
            time.sleep(0.2)
    for _ in range(600):
        lines = httpx.get(f"{server.url}/metrics").text.splitlines()
        counts = [line for line in lines if "in_progress" in line and '"/v1/completions"' in line]
        if counts and all(line.endswith(" 0.0") for line in counts):
            return
        time.sleep(0.1)
    pytest.fail("\n".join(counts))


DIGITS = "1" * 4300


@pytest.mark.parametrize(
    ("path", "content", "headers", "status"),
    [
        ("/generate", f'{{"prompt": "secret", "max_tokens": {DIGITS}}}', {}, 400),
        ("/v1/completions", f'{{"model": "demo", "prompt": "secret", "logit_bias": {{"1": {DIGITS}}}}}', {}, 400),
        ("/generate", '{"prompt": "secret", "max_time": NaN}', {}, 400),
        ("/generate", '{"prompt": "secret", "max_tokens": 5000}', {}, 400),
        ("/generate", json.dumps({"prompt": "secret" * 500}), {}, 400),
        ("/generate", '{"prompt": "secret", "max_time": 1e-9}', {}, 503),
        ("/generate", '{"prompt": "secret"', {}, 400),
        ("/generate", "--x", {"content-type": "multipart/form-data"}, 415),
        ("/v1/completions", "--x", {"content-type": "multipart/form-data"}, 415),
        ("/v1", "{}", {"host": "evil.example"}, 404),
        ("/generate/", "{}", {"host": "evil.example"}, 404),
        ("/v1/%0a2026 [INFO] forged", "{}", {}, 404),
        ("/%0d%0a2026 [INFO] forged", "{}", {}, 404),
    ],
    ids=lambda value: str(value)[:40],
)
def test_odd_requests_are_refused_in_a_word(
    server: Server, path: str, content: str, headers: dict[str, str], status: int
) -> None:
    said = len(server.log.read_text())
    given = {"content-type": "application/json", **headers}
    answer = httpx.post(server.url + path, content=content, headers=given, timeout=60)
    assert (answer.status_code, answer.headers.get("location")) == (status, None)
    assert len(answer.content) < 400
    log = server.log.read_text()[said:]
    assert "Traceback" not in log
    assert "secret" not in answer.text + log
    assert not any(line.startswith("2026 [INFO] forged") for line in log.splitlines())


def test_the_native_route_forgets_who_leaves_before_the_first_token(server: Server) -> None:
    """More than there are slots, so that some wait: they go, and not at their turn."""
    body = json.dumps({"prompt": "Count from 1 to 99.", "max_tokens": 900, "temperature": 0}).encode()
    address = urlsplit(server.url)
    head = (
        f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    busy = {"model": "demo", "prompt": "Hello", "max_tokens": 900, "ignore_eos": True, "n": 8, "stream": True}

    def waiting() -> float:
        lines = httpx.get(f"{server.url}/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("bento_kv_num_requests_waiting"))

    def wait_for(count: float) -> None:
        deadline = time.monotonic() + 60
        while waiting() != count:
            assert time.monotonic() < deadline, f"{waiting()} wait"

    with httpx.stream("POST", f"{server.url}/v1/completions", json=busy, timeout=60) as response:
        parts = response.iter_bytes()  # kept, since the answer ends with it
        next(parts)
        connections = [socket.create_connection((address.hostname, address.port)) for _ in range(5)]
        for connection in connections:
            connection.sendall(head.encode() + body)
        wait_for(5)
        for connection in connections:
            connection.close()
        wait_for(0)


def test_paths_that_clients_make_up_are_no_series_of_their_own(server: Server) -> None:
    with httpx.Client(base_url=server.url) as http:
        for number in range(30):
            assert http.get(f"/v1/made-up-{number}").status_code == 404
            assert http.get(f"/made-up-{number}").status_code == 404
        metrics = http.get("/metrics").text
    assert "made-up" not in metrics
    assert 'endpoint="other"' in metrics
    assert 'endpoint="/v1/chat/completions"' in metrics


@pytest.mark.slow
def test_requests_leave_nothing_behind(server: Server) -> None:
    """BentoML alone keeps 5 kB of each for ten minutes."""

    def resident() -> int:
        pages = [int(Path(f"/proc/{worker}/statm").read_text().split()[1]) for worker in server.workers()]
        return sum(pages) * os.sysconf("SC_PAGE_SIZE")

    with httpx.Client(base_url=server.url) as http:
        for number in range(4000):
            assert http.get("/v1/models").status_code == 200
            if number == 1000:
                before = resident()
    assert (resident() - before) / 3000 < 2000


def test_the_worker_has_no_torch(server: Server) -> None:
    workers = server.workers()
    assert workers
    for worker in workers:
        assert "libtorch" not in Path(f"/proc/{worker}/maps").read_text()


def test_errors_have_openais_form_behind_bentoml(server: Server) -> None:
    for path, body, status in (
        ("/v1/chat/completions", b"{", 400),
        ("/v1/chat/completions", json.dumps({"model": "demo", "messages": []}).encode(), 400),
        ("/v1/completions", json.dumps({"model": "demo", "prompt": "x" * 2000}).encode(), 400),
        ("/v1/completions", b" " * 3_000_000, 413),
        ("/v1/nothing", b"{}", 404),
    ):
        response = httpx.post(f"{server.url}{path}", content=body, headers={"content-type": "application/json"})
        assert response.status_code == status, response.text
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    too_long = httpx.post(f"{server.url}/v1/completions", json={"model": "demo", "prompt": "x" * 2000}).json()
    assert "2000" in too_long["error"]["message"]
    assert "1024" in too_long["error"]["message"]


def test_more_than_slots_and_queue_get_429(server: Server) -> None:
    """48 places; 80 long answers at once. Everyone gets an answer or is told when to come back."""
    start = threading.Barrier(80)

    def post(_: int) -> httpx.Response:
        start.wait()
        body = {"model": "demo", "prompt": "Count from 1 to 99.", "max_tokens": 200, "ignore_eos": True}
        return httpx.post(f"{server.url}/v1/completions", json=body, timeout=300)

    with ThreadPoolExecutor(80) as pool:
        responses = list(pool.map(post, range(80)))
    statuses = {response.status_code for response in responses}
    assert statuses == {200, 429}
    refused = [response for response in responses if response.status_code == 429]
    assert all(int(response.headers["retry-after"]) >= 1 for response in refused)
    answered = [response.json()["choices"][0]["text"] for response in responses if response.status_code == 200]
    assert len(set(answered)) == 1


def test_clients_that_vanish_free_their_slots(server: Server, client: openai.OpenAI) -> None:
    body = {"model": "demo", "prompt": "Hello", "max_tokens": 900, "ignore_eos": True, "stream": True}
    for _ in range(16):
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as response:
            assert response.status_code == 200
            next(response.iter_bytes())
    assert "42" in _ask(client, SUM)
    for _ in range(600):
        if "bento_kv_num_requests_running 0.0" in httpx.get(f"{server.url}/metrics").text:
            return
        _ask(client, SUM)
    pytest.fail("slots are still taken")


def test_a_key_is_asked_for_when_one_is_set(tmp_path: Path) -> None:
    environment = {"BENTO_KV_API_KEY": "secret other\n", "PYTHONPATH": str(ROOT)}
    packaged = "bento_kv.bento.service:LanguageModel"  # served from any folder
    with serving(packaged, log=tmp_path / "log", environment=environment, directory=tmp_path) as server:
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong").models.list()
        models = openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret").models.list()
        assert [model.id for model in models] == ["demo"]
        assert httpx.post(f"{server.url}/generate", json={"prompt": SUM}).status_code == 401
        assert httpx.get(f"{server.url}/metrics").status_code == 401
        assert httpx.get(f"{server.url}/metrics", headers={"authorization": "Bearer secret"}).status_code == 200
        # Another key shares no cached prefix, on BentoML's own route either.
        found = [_hits_after(server, key) for key in ("secret", "other", "secret")]
        assert found[0] == found[1] == 0
        assert found[2] > 0


def _hits_after(server: Server, key: str) -> float:
    headers = {"authorization": f"Bearer {key}"}
    body = {"prompt": "What is 17 + 25? " * 10, "max_tokens": 1}
    assert httpx.post(f"{server.url}/generate", json=body, headers=headers).status_code == 200
    text = httpx.get(f"{server.url}/metrics", headers=headers).text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("bento_kv_prefix_cache_hit"))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("model=/no/such/model", "/no/such/model"),
        ("exact=sometimes", "exact"),
        ("speed=9", "speed"),
        pytest.param("precision=int3", "int3", marks=pytest.mark.slow),
    ],
)
def test_arguments_that_cannot_be_are_named(argument: str, message: str, tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match=message),
        serving("service:LanguageModel", "--arg", argument, log=tmp_path / "log"),
    ):
        pass

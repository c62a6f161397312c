"""A server ends: in `drain_timeout` whatever its clients do, and at once when it is told twice."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.e2e.server import Server, serving

DRAIN_SECONDS = 6
END_SECONDS = DRAIN_SECONDS + 20  # a guard against hanging, which is for ever
ANSWER: dict[str, Any] = {"model": "demo", "prompt": "Hello", "max_tokens": 200, "ignore_eos": True, "stream": True}
UNREAD = {**ANSWER, "max_tokens": 1000, "logprobs": 5, "n": 16}


def request(body: dict[str, Any], *, length: int | None = None) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length or len(content)}"
    return f"{head}\r\n\r\n".encode() + content


def connect(server: Server, sent: bytes) -> socket.socket:
    """A connection whose answer nobody reads."""
    address = urlsplit(server.url)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((address.hostname, address.port))
    connection.sendall(sent)
    return connection


@contextmanager
def held(server: Server) -> Iterator[None]:
    """Clients that hold whatever connections can be held by."""
    whole = request(ANSWER)
    kinds = {
        "silent": b"",
        "half a head": whole[:40],
        "half a body": request(ANSWER, length=9000),
        "idle": b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
        "half a second head": b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\nGET",
        "unread stream": request(UNREAD),
        "unread answer": request({**UNREAD, "stream": False}),
    }
    with ExitStack() as stack:
        for sent in kinds.values():
            for _ in range(2):
                stack.enter_context(connect(server, sent))
        yield


def ends(server: Server, seconds: float = END_SECONDS) -> bool:
    try:
        server.process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def stream(server: Server) -> str:
    return httpx.post(f"{server.url}/v1/completions", json=ANSWER, timeout=60).text


def wait_until_running(server: Server) -> None:
    deadline = time.monotonic() + 60
    while "bento_kv_num_requests_running 0.0" in httpx.get(f"{server.url}/metrics").text:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_no_client_holds_a_server_that_ends(workers: int, tmp_path: Path) -> None:
    arguments = [f"--arg={it}" for it in (f"drain_timeout={DRAIN_SECONDS}", f"workers={workers}", "slots=8")]
    with serving("service:LanguageModel", *arguments, log=tmp_path / "log") as server:
        serving_processes = server.workers()
        with ThreadPoolExecutor(4) as pool, ExitStack() as stack:
            answers = [pool.submit(stream, server) for _ in range(4)]
            wait_until_running(server)
            stack.enter_context(held(server))
            time.sleep(1)
            server.process.send_signal(signal.SIGTERM)
            assert ends(server), (tmp_path / "log").read_text()[-3000:]
            for answer in answers:  # those that read are answered to the end
                assert answer.result().endswith("data: [DONE]\n\n")
        assert not any(Path(f"/proc/{worker}").exists() for worker in serving_processes)
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(number: signal.Signals, tmp_path: Path) -> None:
    """SIGTERM goes to the supervisor alone, and Ctrl+C in a terminal to all processes."""
    with serving("service:LanguageModel", "--arg=drain_timeout=600", log=tmp_path / "log") as server:
        workers = server.workers()

        def tell() -> None:
            if number == signal.SIGINT:
                os.killpg(server.process.pid, number)
            else:
                server.process.send_signal(number)

        with ExitStack() as stack:
            for _ in range(4):  # more than a quiet machine answers while the test looks
                stack.enter_context(connect(server, request({**ANSWER, "max_tokens": 1000, "n": 16, "stream": False})))
            wait_until_running(server)
            tell()
            assert not ends(server, 3), "the first one drains"
            tell()
            assert ends(server, 20), (tmp_path / "log").read_text()[-3000:]
        assert not any(Path(f"/proc/{worker}").exists() for worker in workers)

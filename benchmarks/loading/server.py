"""A `bentoml serve` of our own on loopback, and what can be seen of it from outside."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
START_SECONDS = 600


@dataclass
class Server:
    """A running server."""

    url: str
    process: subprocess.Popen[bytes] | None = None

    def workers(self) -> list[int]:
        """Ids of its serving processes; none if it is not ours."""
        if self.process is None:
            return []
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(child) for child in children.split()]

    def memory(self) -> float:
        """MiB that its workers have resident."""
        statuses = [Path(f"/proc/{worker}/status").read_text() for worker in self.workers()]
        return sum(int(found[1]) for status in statuses if (found := re.search(r"VmRSS:\s+(\d+) kB", status))) / 1024

    def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        lines = httpx.get(f"{self.url}/metrics", timeout=30).text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if re.match(rf"bento_kv_{name}(\{{|\s)", line))

    def model(self) -> tuple[str, int]:
        """Its name, and positions of its context."""
        (model,) = httpx.get(f"{self.url}/v1/models", timeout=30).json()["data"][:1]
        return model["id"], model.get("max_model_len", 0)


@contextmanager
def serving(home: Path, *arguments: str) -> Iterator[Server]:
    """`bentoml serve` with these `--arg`s until the context ends; decoders are kept in `home` from run to run."""
    command = [str(Path(sys.executable).parent / "bentoml"), "serve", "service:LanguageModel"]
    given = [part for argument in arguments for part in ("--arg", argument)]
    environment = {"BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}
    with running([*command, *given], environment, home, "/readyz") as server:
        yield server


@contextmanager
def running(command: list[str], environment: dict[str, str], home: Path, ready: str) -> Iterator[Server]:
    """A server on a free port of loopback until the context ends.

    Args:
        command: to which `--host` and `--port` are added.
        environment: variables besides this process's.
        home: where its log is, until it has ended.
        ready: the path that answers 200 when it is ready.
    """
    home.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = home / f"serve-{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    server = Server(f"http://127.0.0.1:{port}", process)
    try:
        _wait_until_ready(server, ready, log)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)
        log.unlink()


def _wait_until_ready(server: Server, ready: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert server.process is not None
        if server.process.poll() is not None:
            raise SystemExit(f"the server ended:\n{log.read_text()[-3000:]}")
        try:
            if httpx.get(f"{server.url}{ready}").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise SystemExit(f"the server is not ready:\n{log.read_text()[-3000:]}")

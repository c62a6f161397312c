"""The examples do what they say, on the demo model. The client's is in `test_serve`, where a server is."""

from __future__ import annotations

import subprocess
import sys

from starlette.testclient import TestClient

from tests.e2e.server import ROOT


def test_a_service_of_ones_own() -> None:
    from examples.own_service import Assistant

    question = {"question": "What is 17 + 25?"}
    with TestClient(Assistant.to_asgi(is_main=True)) as client:
        assert client.post("/ask", json=question).text == "42"
        assert client.post("/tell", json=question).text.strip() == "42"
        assert client.post("/ask", json={**question, "seconds": -1}).status_code == 400
        assert client.get("/v1/models").json()["data"][0]["id"] == "demo"
        assert client.get("/readyz").status_code == 200


def test_a_script_without_a_server() -> None:
    command = [sys.executable, "examples/script.py", "What is 17 + 25?", "What is 30 + 4?"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=True)
    assert run.stdout.splitlines() == ["What is 17 + 25? 42", "What is 30 + 4? 34"]

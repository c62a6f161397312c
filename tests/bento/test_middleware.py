"""The time limit on the first byte of an answer, which leaves nothing behind."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from bento_kv.bento.middleware import FirstByteTimeout


async def ask(head_after: float, end_after: float, timeout: float) -> tuple[httpx.Response, int]:
    """The answer of an app that takes so many seconds, and the timers that are left."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(head_after)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(end_after)
        await send({"type": "http.response.body", "body": b"all of it"})

    transport = httpx.ASGITransport(FirstByteTimeout(app, timeout))
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as http:
        response = await http.get("/")
    timers = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    return response, sum(not timer.cancelled() for timer in timers)


@pytest.mark.parametrize(("head_after", "end_after"), [(0, 0), (0, 0.2)])
def test_an_answer_that_has_begun_has_all_the_time(head_after: float, end_after: float) -> None:
    response, timers = asyncio.run(ask(head_after, end_after, 0.1))
    assert (response.status_code, response.content, timers) == (200, b"all of it", 0)


def test_one_that_does_not_begin_is_504_in_openais_form() -> None:
    response, timers = asyncio.run(ask(60, 0, 0.1))
    assert (response.status_code, timers) == (504, 0)
    assert response.json()["error"]["code"] == "request_timeout"


def test_a_timeout_of_the_app_is_its_own() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise TimeoutError("of the app")

    async def run() -> None:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(FirstByteTimeout(app, 1)), base_url="http://here"
        ) as http:
            await http.get("/")

    with pytest.raises(TimeoutError, match="of the app"):
        asyncio.run(run())

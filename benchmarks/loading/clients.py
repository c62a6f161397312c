"""The clients, in a process of their own: requests as JSON on stdin, what became of each as JSON on stdout.

    python -m benchmarks.loading.clients < asks.json

Times are seconds after the start, and a request's begin when it is due, so that waiting for a free client counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import httpx

PATIENCE = 600.0  # seconds for an answer


async def one(http: httpx.AsyncClient, ask: dict[str, Any], start: float) -> dict[str, Any]:
    """Send a request and read its answer. `status` 0 means that there was none."""
    now = time.perf_counter() - start
    record: dict[str, Any] = {"due": now if ask["at"] is None else ask["at"], "sent": now}
    record |= {
        "status": 0,
        "first": None,
        "text": "",
        "times": [],
        "tokens": 0,
        "finish": None,
        "error": None,
        "left": False,
    }
    try:
        async with asyncio.timeout(PATIENCE if ask["leave"] is None else ask["leave"]):
            async with http.stream("POST", ask["path"], json=ask["body"]) as response:
                record["status"] = response.status_code
                if response.status_code == 200 and ask["body"].get("stream"):
                    await _read(response, record, start)
                elif response.status_code == 200:
                    _take(json.loads(await response.aread()), record, start)
                else:
                    record["error"] = (await response.aread()).decode(errors="replace")[:300]
    except TimeoutError:
        record["left"] = ask["leave"] is not None
        record["error"] = None if record["left"] else "no end in time"
    except httpx.HTTPError as error:
        record["error"] = f"{type(error).__name__}: {error}"
    record["end"] = time.perf_counter() - start
    return record


def _take(answer: dict[str, Any], record: dict[str, Any], start: float) -> None:
    """An answer that came as a whole."""
    (choice,) = answer["choices"]
    record["first"] = time.perf_counter() - start
    record["text"] = choice["text"] if "text" in choice else choice["message"]["content"]
    record["tokens"], record["finish"] = answer["usage"]["completion_tokens"], choice["finish_reason"]


async def _read(response: httpx.Response, record: dict[str, Any], start: float) -> None:
    done = False
    async for line in response.aiter_lines():
        if not line.startswith("data: "):
            continue
        if line == "data: [DONE]":
            done = True
            continue
        chunk = json.loads(line.removeprefix("data: "))
        if "error" in chunk:
            record["error"] = chunk["error"]["message"]
            return
        if chunk.get("usage"):
            record["tokens"] = chunk["usage"]["completion_tokens"]
        for choice in chunk.get("choices", ()):
            record["first"] = record["first"] or time.perf_counter() - start
            text = choice["text"] if "text" in choice else choice["delta"].get("content") or ""
            if text:
                record["text"] += text
                record["times"].append(time.perf_counter() - start)
            record["finish"] = choice.get("finish_reason") or record["finish"]
    if not done:
        record["error"] = "the stream ended without [DONE]"


async def run(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """All requests on so many clients; without due times they go round and round for `seconds`, if that is given."""
    waiting = deque(enumerate(spec["asks"]))
    seconds, results = spec["seconds"], list[dict[str, Any]]()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=spec["url"], timeout=None, limits=limits) as http:
        start = time.perf_counter()

        async def client() -> None:
            while waiting:
                index, ask = waiting.popleft()
                if seconds is not None and ask["at"] is None:
                    if time.perf_counter() - start > seconds:
                        return
                    waiting.append((index, ask))
                if ask["at"] is not None:
                    await asyncio.sleep(max(0.0, ask["at"] - (time.perf_counter() - start)))
                results.append({"index": index, **await one(http, ask, start)})

        await asyncio.gather(*(client() for _ in range(spec["clients"])))
    return results


async def ask_all(url: str, asks: list[dict[str, Any]], clients: int, seconds: float | None) -> list[dict[str, Any]]:
    """Run the clients in another process."""
    spec = json.dumps({"url": url, "asks": asks, "clients": clients, "seconds": seconds}).encode()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.loading.clients",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate(spec)
    if process.returncode:
        raise SystemExit("the clients' process failed")
    return json.loads(output)  # type: ignore[no-any-return]


@contextlib.asynccontextmanager
async def sampling(look: Any, interval: float) -> AsyncIterator[list[Any]]:
    """What `look` says, again and again, while the context lasts."""
    seen: list[Any] = []

    async def watch() -> None:
        while True:
            seen.append(await asyncio.to_thread(look))
            await asyncio.sleep(interval)

    watching = asyncio.create_task(watch())
    try:
        yield seen
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(json.load(sys.stdin)))))

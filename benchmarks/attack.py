"""A server under attack by a client: what others notice meanwhile, and what memory it takes.

    python -m benchmarks.attack [ATTACK ...] [--seconds 15] [--json]

For each attack a `bentoml serve` on the demo model of its own, on loopback, and the attacker in a third process. Meanwhile
`/livez` is asked again and again, and a quiet client asks for a few tokens; both are compared with the time before the
attack. Exits with 1 if `/livez` ever took longer than it may, or a quiet client's first token did.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from statistics import median
from typing import Any

import httpx

from benchmarks.loading.clients import sampling
from benchmarks.loading.server import ROOT, Server, serving

HOME = ROOT / "build" / "attack"
ATTACKS = (
    "native",
    "texts",
    "dropped",
    "stops",
    "halves",
    "choices",
    "urgent",
    "counted",
    "unread",
    "oddities",
)
LIVEZ_SECONDS = 0.5  # an orchestrator's probe may take this long
FIRST_TOKEN_RATIO = 3.0  # a victim's worst first token, to the worst quiet one
PATIENCE = 60.0  # seconds for an answer; longer is said to be this long
QUIET_SECONDS = 5.0
DRAIN_SECONDS = 5.0  # that the server gives requests after SIGTERM
STOP_SECONDS = 30.0  # after which it is killed

Json = dict[str, Any]


async def watched(url: str, seconds: float, until: Awaitable[Any] | None = None) -> Json:
    """Ask `/livez` and, as a quiet client, for a few tokens, for so long (and until that is done); what they took."""
    async with (
        httpx.AsyncClient(base_url=url, timeout=PATIENCE) as http,
        _timing(lambda: _livez(http), 0.1) as livez,
        _timing(lambda: _first_token(http), 0.3) as first,
    ):
        await asyncio.gather(asyncio.sleep(seconds), *([until] if until else []))
    return {"livez": livez, "first_token": first}


@contextlib.asynccontextmanager
async def _timing(ask: Callable[[], Awaitable[None]], pause: float) -> AsyncIterator[list[float]]:
    """Seconds that each of the asks took. One that is under way at the end is waited for."""
    took: list[float] = []
    ended = False

    async def loop() -> None:
        while not ended:
            began = time.perf_counter()
            try:
                await ask()
            except httpx.HTTPError:
                took.append(PATIENCE)
            else:
                took.append(time.perf_counter() - began)
            await asyncio.sleep(pause)

    asking = asyncio.create_task(loop())
    try:
        yield took
    finally:
        ended = True
        await asking


async def _livez(http: httpx.AsyncClient) -> None:
    (await http.get("/livez")).raise_for_status()


async def _first_token(http: httpx.AsyncClient) -> None:
    """The time of a whole short answer; most of it is the wait for the first token."""
    body = {"model": "demo", "prompt": "What is 17 + 25?", "max_tokens": 1}
    (await http.post("/v1/completions", json=body)).raise_for_status()


@contextlib.asynccontextmanager
async def attacking(name: str, url: str, seconds: float) -> AsyncIterator[asyncio.Task[Json]]:
    """The attack in a process of its own, until the context ends; the task is done when it has told its outcomes."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.attacks", name, url, str(seconds)),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    telling = asyncio.create_task(_told(process.stdout))
    try:
        yield telling
    finally:
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 10)
        except TimeoutError:
            process.kill()
            await process.wait()


async def _told(stream: asyncio.StreamReader) -> Json:
    line = await stream.readline()
    return json.loads(line) if line else {"attack failed": 1}


async def measure(name: str, server: Server, seconds: float) -> Json:
    """One attack on a server that is then stopped, while the attacker still holds what it has."""
    quiet = await watched(server.url, QUIET_SECONDS)
    before = server.memory()
    async with sampling(server.memory, 0.2) as memory, attacking(name, server.url, seconds) as telling:
        during = await watched(server.url, 1.0, telling)
        peak = max([before, *memory])
        after = server.memory()
        stopped = await asyncio.to_thread(_stop, server)
    return {
        "attack": name,
        "livez_quiet": _summary(quiet["livez"]),
        "livez": _summary(during["livez"]),
        "first_token_quiet": _summary(quiet["first_token"]),
        "first_token": _summary(during["first_token"]),
        "memory_mib": {"before": round(before), "peak": round(peak), "after": round(after)},
        "stop_seconds": stopped,
        "outcomes": telling.result(),
    }


def _summary(seconds: Sequence[float]) -> Json:
    return {"median": round(median(seconds), 3), "worst": round(max(seconds), 3), "count": len(seconds)}


def _stop(server: Server) -> float | None:
    """Seconds from SIGTERM to the end; None if it had to be killed."""
    assert server.process is not None
    began, workers = time.perf_counter(), server.workers()
    server.process.send_signal(signal.SIGTERM)
    try:
        server.process.wait(STOP_SECONDS)
        return round(time.perf_counter() - began, 1)
    except subprocess.TimeoutExpired:
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        server.process.kill()
        return None


def failures(row: Json) -> list[str]:
    """What an attack did that it must not be able to."""
    found = []
    if row["livez"]["worst"] > LIVEZ_SECONDS:
        found.append(f"/livez took {row['livez']['worst']} s")
    ratio = row["first_token"]["worst"] / row["first_token_quiet"]["worst"]
    if ratio > FIRST_TOKEN_RATIO:
        found.append(f"a first token took {ratio:.1f} times as long")
    return found


def table(rows: Sequence[Json]) -> str:
    """The measurements, one attack a line: seconds are median / worst, and in brackets the quiet ones."""
    lines = [f"{'attack':9} {'/livez s':28} {'first token s':30} {'memory MiB':18} {'stop s':>6}  outcomes"]
    for row in rows:
        cells = [_times(row, name) for name in ("livez", "first_token")]
        memory = " > ".join(str(value) for value in row["memory_mib"].values())
        stopped = "killed" if row["stop_seconds"] is None else str(row["stop_seconds"])
        outcomes = ", ".join(f"{count}x {outcome}" for outcome, count in row["outcomes"].items())
        lines.append(f"{row['attack']:9} {cells[0]:28} {cells[1]:30} {memory:18} {stopped:>6}  {outcomes}")
        lines += [f"{'':9} ! {failure}" for failure in failures(row)]
    return "\n".join(lines)


def _times(row: Json, name: str) -> str:
    now, quiet = row[name], row[f"{name}_quiet"]
    return f"{now['median']:.3f}/{now['worst']:.3f} ({quiet['median']:.3f}/{quiet['worst']:.3f})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help=f"{', '.join(ATTACKS)}; all unless given")
    parser.add_argument("--seconds", type=float, default=15.0, help="that an attack goes on for, at most")
    parser.add_argument("--arg", action="append", default=[], help="an --arg for the server")
    parser.add_argument("--json", action="store_true", help="print the measurements as JSON")
    options = parser.parse_args()
    if unknown := [name for name in options.attacks if name not in ATTACKS]:
        parser.error(f"there is no attack {unknown[0]!r}; there are {', '.join(ATTACKS)}")
    rows = []
    for name in options.attacks or ATTACKS:
        with serving(HOME, f"drain_timeout={DRAIN_SECONDS}", *options.arg) as server:
            rows.append(asyncio.run(measure(name, server, options.seconds)))
        print(table(rows[-1:]), file=sys.stderr)
    print(json.dumps(rows, indent=1) if options.json else table(rows))
    return 1 if any(map(failures, rows)) else 0


if __name__ == "__main__":
    sys.exit(main())

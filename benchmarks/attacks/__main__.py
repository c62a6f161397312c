"""One attack, in a process of its own, so that what it costs the attacker delays no measurement.

    python -m benchmarks.attacks NAME URL SECONDS

It says on stdout, as JSON, what came of it; then it keeps what it holds until its stdin ends.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys

from benchmarks.attacks.target import Target


async def _run(name: str, target: Target, seconds: float) -> None:
    attacking = asyncio.create_task(importlib.import_module(f"benchmarks.attacks.{name}").attack(target))
    await asyncio.wait([attacking], timeout=seconds)
    if attacking.done():
        attacking.result()
    print(json.dumps(target.outcomes), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    attacking.cancel()
    await asyncio.gather(attacking, return_exceptions=True)


if __name__ == "__main__":
    name, url, seconds = sys.argv[1:]
    asyncio.run(_run(name, Target(url), float(seconds)))

"""Connections that say nothing, half a head or half a body, and stay."""

import asyncio

from benchmarks.attacks.target import Target, request

_OF_EACH = 100


async def attack(target: Target) -> None:
    whole = request("/v1/completions", {"model": "demo", "prompt": "Hi"}, length=1000)
    kept = [await target.raw(sent) for _ in range(_OF_EACH) for sent in (b"", whole[:30], whole)]
    try:
        await asyncio.Event().wait()
    finally:
        for connection in kept:
            if connection is not None:
                connection.close()

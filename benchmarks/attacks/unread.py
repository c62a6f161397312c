"""Streams of many log-probabilities that nobody reads."""

import asyncio

from benchmarks.attacks.target import Target, request

_STREAMS = 16


async def attack(target: Target) -> None:
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": "Count."}],
        "logprobs": True,
        "top_logprobs": 20,
        "ignore_eos": True,
        "stream": True,
        "n": 16,
    }
    kept = [await target.raw(request("/v1/chat/completions", body), receive_buffer=4096) for _ in range(_STREAMS)]
    try:
        await asyncio.Event().wait()
    finally:
        for connection in kept:
            if connection is not None:
                connection.close()

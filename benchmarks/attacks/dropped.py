"""Requests of 0.9 MB whose clients leave as soon as they have sent them."""

import asyncio

from benchmarks.attacks.target import Target, request, words

_REQUESTS = 355
_ROUTES = ("/v1/completions", "/v1/tokenize")


async def attack(target: Target) -> None:
    text = words(115_000)
    sent = [request(path, {"model": "demo", "prompt": text}) for path in _ROUTES]
    for number in range(_REQUESTS):
        connection = await target.raw(sent[number % len(sent)])
        if connection is not None:
            await asyncio.sleep(0.02)
            connection.close()

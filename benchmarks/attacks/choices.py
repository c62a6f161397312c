"""One request of 192 answers, about as many as one client may ask a server with 272 places for."""

from benchmarks.attacks.target import Target


async def attack(target: Target) -> None:
    prompts = [f"Count from {number} to 99." for number in range(12)]
    body = {"model": "demo", "prompt": prompts, "n": 16, "max_tokens": 200, "ignore_eos": True}
    async with target.client() as http:
        await target.post(http, "/v1/completions", body)

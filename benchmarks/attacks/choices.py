"""One request of 272 answers, as many as the server has places."""

from benchmarks.attacks.target import Target


async def attack(target: Target) -> None:
    prompts = [f"Count from {number} to 99." for number in range(17)]
    body = {"model": "demo", "prompt": prompts, "n": 16, "max_tokens": 200, "ignore_eos": True}
    async with target.client() as http:
        await target.post(http, "/v1/completions", body)

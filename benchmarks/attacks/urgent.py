"""Many long answers that all say they are the most urgent."""

from benchmarks.attacks.target import Target


async def attack(target: Target) -> None:
    body = {"model": "demo", "prompt": "Count.", "max_tokens": 200, "ignore_eos": True, "priority": -100}
    async with target.client() as http:

        async def once(_: int) -> None:
            await target.post(http, "/v1/completions", body)

        await target.again(48, 20, once)

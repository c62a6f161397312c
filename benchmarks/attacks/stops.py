"""Stop texts of hundreds of kilobytes, for sixteen answers at once."""

from benchmarks.attacks.target import Target


async def attack(target: Target) -> None:
    async with target.client() as http:

        async def once(turn: int) -> None:
            stops = [("ab" * 120_000) + str(turn + part) for part in range(4)]
            body = {"model": "demo", "prompt": "Hi", "stop": stops, "n": 16, "max_tokens": 1}
            await target.post(http, "/v1/completions", body)

        await target.again(2, 4, once)

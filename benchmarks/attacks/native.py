"""Bodies of 10 MB for the native route."""

from benchmarks.attacks.target import Target, words


async def attack(target: Target) -> None:
    body = {"prompt": words(1_400_000), "max_tokens": 1}
    async with target.client() as http:

        async def once(_: int) -> None:
            await target.post(http, "/generate", body)

        await target.again(2, 2, once)

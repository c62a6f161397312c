"""Texts of 0.9 MB, below any limit of a body, that do not fit in the context or are only to be tokenized."""

from benchmarks.attacks.target import Target, words

_ROUTES = ("/v1/completions", "/v1/chat/completions", "/v1/tokenize")


async def attack(target: Target) -> None:
    async with target.client() as http:

        async def once(turn: int) -> None:
            path, text = _ROUTES[turn % len(_ROUTES)], words(115_000, turn)
            asked = {"messages": [{"role": "user", "content": text}]} if "chat" in path else {"prompt": text}
            await target.post(http, path, {"model": "demo", **asked})

        await target.again(8, 6, once)

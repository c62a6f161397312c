"""Small things that should be refused in a word: integers of 4,300 digits, bodies in no form, forged paths and hosts."""

from typing import Any

import httpx

from benchmarks.attacks.target import Target

_LONG = b"1" * 4301
_BODIES: tuple[tuple[str, bytes, dict[str, str]], ...] = (
    ("/v1/completions", b'{"model": "demo", "prompt": "Hi", "seed": ' + _LONG + b"}", {}),
    ("/v1/completions", b'{"model": "demo", "prompt": "Hi", "logit_bias": {"1": ' + _LONG + b"}}", {}),
    ("/generate", b'{"prompt": "Hi", "seed": ' + _LONG + b"}", {}),
    ("/generate", b'{"prompt": "Hi", "max_time": NaN}', {}),
    ("/generate", b'{"prompt": ', {}),
    ("/generate", b"--x", {"content-type": "multipart/form-data"}),
    ("/v1/completions", b'{"model": "demo", "prompt": "Hi", "max_tokens": 1}', {"content-type": "text/plain"}),
    ("/v1", b"{}", {"host": "evil.example"}),
    ("/v1/%0aforged", b"{}", {}),
)


async def attack(target: Target) -> None:
    async with target.client() as http:

        async def once(turn: int) -> None:
            path, content, headers = _BODIES[turn % len(_BODIES)]
            response = await _send(http, path, content, headers)
            outcome = "no answer" if response is None else str(response.status_code)
            redirected = response is not None and response.is_redirect
            target.outcomes[f"{path}: {outcome}" if outcome >= "500" or redirected else outcome] += 1

        await target.again(1, len(_BODIES), once)


async def _send(http: httpx.AsyncClient, path: str, content: bytes, headers: Any) -> httpx.Response | None:
    try:
        return await http.post(path, content=content, headers={"content-type": "application/json", **headers})
    except httpx.HTTPError:
        return None

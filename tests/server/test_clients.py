"""Who a client is, that clients take turns, and what they may not do to each other."""

from __future__ import annotations

import asyncio
import threading
from itertools import combinations
from typing import Any

import httpx
import openai
import pytest
from starlette.types import Receive, Scope, Send

from bento_kv.contract.plan import StepPlan
from bento_kv.engine.observer import NullObserver
from bento_kv.server.app import RequireApiKey
from bento_kv.server.clients import Caller, Clients
from tests.server.world import MODEL, World, serving

BODY = {"model": MODEL, "prompt": "say:a long and winding prompt|", "max_tokens": 2}


def scope(host: str = "10.0.0.1", key: str | None = None) -> Scope:
    headers = [] if key is None else [(b"authorization", f"Bearer {key}".encode())]
    return {"type": "http", "client": (host, 1234), "headers": headers, "path": "/generate"}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("10.0.0.1", "::ffff:10.0.0.1", True),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("testclient", "testclient", True),
    ],
)
def test_without_keys_a_client_is_an_address_or_a_network_of_one_customer(one: str, other: str, same: bool) -> None:
    first, second = Clients().caller(scope(one)), Clients().caller(scope(other))
    assert first is not None
    assert second is not None
    assert (first.client == second.client) is same


def test_one_key_is_everybodys_and_of_several_each_is_a_client() -> None:
    shared = [Clients("secret").caller(scope(host, "secret")) for host in ("10.0.0.1", "10.0.0.2")]
    own = [Clients("alice bob\n").caller(scope("10.0.0.1", key)) for key in ("alice", "bob")]
    for first, second in (shared, own):
        assert first is not None
        assert second is not None
        assert first.client != second.client
    again = Clients("alice bob").caller(scope("10.0.0.2", "bob"))
    assert again == own[1]


@pytest.mark.parametrize("key", [None, "", "alic", "alice bob", "bob\n", "ALICE"])
def test_other_keys_are_nobodys(key: str | None) -> None:
    assert Clients("alice").caller(scope(key=key)) is None


def test_different_keys_never_share_a_prefix_whatever_salt_they_ask_for() -> None:
    callers = [Caller(), Caller(key=0), Caller(key=1)]
    asked = [None, "", "key 0/", "key 1/", "any/"]
    salts = [{caller.salt(salt) for salt in asked} for caller in callers]
    assert all(one.isdisjoint(other) for one, other in combinations(salts, 2))
    assert callers[0].salt(None) is None


class Hits(NullObserver):
    def __init__(self) -> None:
        self.hits: list[int] = []

    def prefix_cache(self, query_tokens: int, hit_tokens: int) -> None:
        self.hits.append(hit_tokens)


def test_a_salt_a_key_by_default() -> None:
    observer = Hits()
    with serving(observer=observer, app_options={"api_key": "alice bob"}) as world:
        for key in ("alice", "bob", "alice"):
            headers = {"authorization": f"Bearer {key}"}
            assert httpx.post(f"{world.url}/v1/completions", json=BODY, headers=headers).status_code == 200
        world.wait_until_idle()
    assert observer.hits[:2] == [0, 0]
    assert observer.hits[2] > 0


@pytest.mark.parametrize(("key", "status"), [(None, 403), ("plain", 403), ("urgent", 200)])
def test_a_priority_beyond_the_cap_takes_a_key_that_has_it(key: str | None, status: int) -> None:
    options = {"urgent_api_key": "urgent", **({} if key is None else {"api_key": "plain"})}
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    with serving(app_options=options) as world:
        asked = {**BODY, "priority": -100}
        answer = httpx.post(f"{world.url}/v1/completions", json=asked, headers=headers)
        assert answer.status_code == status
        if status == 403:
            error = answer.json()["error"]
            assert error["param"] == "priority"
            assert "min_priority=-100" in error["message"]
            with world.client(api_key=key or "none") as client, pytest.raises(openai.PermissionDeniedError):
                client.completions.create(model=MODEL, prompt="Hi", extra_body={"priority": -1})


def test_the_many_choices_of_one_do_not_keep_another_out() -> None:
    """The newcomer's answer is whole while the crowd's requests still wait."""
    gate = threading.Event()

    def before_step(plan: StepPlan) -> None:
        assert gate.wait(60)

    crowd = {"model": MODEL, "prompt": ["babble"] * 8, "n": 4, "max_tokens": 20, "ignore_eos": True}
    with serving(slots=2, app_options={"api_key": "crowd quiet"}, before_step=before_step) as world:
        flood = threading.Thread(target=post, args=(world, "crowd", crowd))
        flood.start()
        world.wait_until(lambda stats: stats.waiting + stats.running == 32)
        quiet = threading.Thread(target=post, args=(world, "quiet", BODY))
        quiet.start()
        world.wait_until(lambda stats: stats.waiting + stats.running == 33)
        gate.set()
        quiet.join(60)
        assert world.engine.stats().waiting >= 24
        flood.join(60)


def post(world: World, key: str, body: Any) -> None:
    answer = httpx.post(
        f"{world.url}/v1/completions", json=body, headers={"authorization": f"Bearer {key}"}, timeout=60
    )
    assert answer.status_code == 200


@pytest.mark.parametrize(("open_metrics", "status"), [(False, 401), (True, 200)])
def test_metrics_ask_for_the_key_unless_they_are_open(open_metrics: bool, status: int) -> None:
    async def framework(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    app = RequireApiKey(framework, api_key="secret", open_metrics=open_metrics)

    async def get(path: str, **headers: str) -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as http:
            return (await http.get(path, headers=headers)).status_code

    assert asyncio.run(get("/metrics")) == status
    assert asyncio.run(get("/metrics", authorization="Bearer secret")) == 200
    assert [asyncio.run(get(path)) for path in ("/livez", "/readyz", "/healthz", "/generate")] == [200, 200, 200, 401]

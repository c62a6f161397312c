"""A server under load: every answer checked against what its request gets alone, with latencies, speed and memory.

    python -m benchmarks.load steady [--seconds 60] [--clients 32] [--load 0.7] [--peer NAME]
    python -m benchmarks.load storm  [--clients 300]
    python -m benchmarks.load prefix [--users 32] [--turns 10]

A `bentoml serve` on loopback, its clients in a second process. `steady`: prompts of 8 to 1500 tokens, answers of 4 to 128,
Poisson arrivals. `storm`: clients that vanish at random moments. `prefix`: a conversation, and a long system prompt that many users
share, with and without the prefix cache. Exits with 1 if an answer is not the right one, or the books do not balance.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from benchmarks.loading.clients import ask_all, sampling
from benchmarks.loading.peers import NAMES, cannot_serve, serving_peer
from benchmarks.loading.report import differences, summary
from benchmarks.loading.server import ROOT, Server, serving
from benchmarks.loading.work import FIRST_PLAIN_ID, LLAMAS, Ask, mixed, plain, poisson, random_llama
from benchmarks.results import FOLDER
from bento_kv import demo
from bento_kv.contract.versions import versions_of
from bento_kv.host import processor
from bento_kv.text.tokenizer import Tokenizer

HOME = ROOT / "build" / "load"
CONTEXT = 2048  # positions of a slot, if the model has as many
FREE_WITHIN = 2.0  # seconds after the last client is gone

Json = dict[str, Any]


def fire(url: str, asks: Sequence[Ask], clients: int, seconds: float | None = None) -> list[Json]:
    """All requests on so many clients, or round and round for so many seconds: what became of each."""
    return asyncio.run(ask_all(url, [ask.document() for ask in asks], clients, seconds))


def alone(url: str, asks: Sequence[Ask]) -> list[Json]:
    """What each request gets when there is no other."""
    return _all_whole(fire(url, asks, clients=1))


def _all_whole(records: list[Json]) -> list[Json]:
    """The records in the order of the requests, none of which failed."""
    for record in records:
        if record["error"] is not None or record["status"] != 200:
            raise SystemExit(f"a request fails: {record['status']} {record['error']}")
    return sorted(records, key=lambda record: record["index"])


def steady(server: Server, asks: list[Ask], references: list[Json], options: argparse.Namespace) -> Json:
    """Closed loop for the most that there is, then Poisson arrivals below it."""
    closed = fire(server.url, asks, options.clients, options.closed_seconds)
    most = summary(closed)
    rate = options.rate or options.load * most["requests_per_second"]
    due = poisson(asks, rate, options.seconds, options.seed)
    numbers = {id(ask.body): number for number, ask in enumerate(asks)}

    async def load() -> tuple[list[Json], list[float]]:
        async with sampling(server.memory, 0.5) as memory:
            return await ask_all(server.url, [ask.document() for ask in due], options.clients, None), memory

    before = server.memory()
    records, memory = asyncio.run(load())
    for record in records:
        record["index"] = numbers[id(due[record["index"]].body)]
    wrong = differences((it for it in (*closed, *records) if it["error"] is None), references)
    return {
        "closed_loop": most,
        "poisson": {"rate": round(rate, 2), **summary(records)},
        "memory_mib": {"before": round(before), "peak": round(max(memory)), "after": round(server.memory())},
        "memory_over_time_mib": [round(value) for value in memory],
        "wrong_answers": wrong,
    }


def storm(server: Server, asks: list[Ask], references: list[Json], options: argparse.Namespace) -> Json:
    """Clients that vanish, and how long after the last of them every slot is free."""
    rate = options.clients / max(options.seconds, 1.0) * 4
    due = poisson(asks, rate, options.seconds, options.seed, leave=options.leave)
    records = fire(server.url, due, options.clients)
    begun = time.perf_counter()
    while (busy := server.metric("num_requests_running") + server.metric("num_requests_waiting")) and (
        time.perf_counter() - begun < 60
    ):
        time.sleep(0.02)
    free_after = time.perf_counter() - begun
    books = {
        "ended": server.metric("request_success_total"),
        "timed": server.metric("e2e_request_latency_seconds_count"),
        "running": server.metric("num_requests_running"),
        "waiting": server.metric("num_requests_waiting"),
        "kv_tokens_used": server.metric("kv_cache_used_tokens"),
    }
    balanced = not busy and books["ended"] == books["timed"] and not books["kv_tokens_used"]
    afterwards = differences(fire(server.url, asks, options.slots), references)
    numbers = {id(ask.body): number for number, ask in enumerate(asks)}
    stayed = [it for it in records if it["error"] is None and not it["left"]]
    for record in stayed:
        record["index"] = numbers[id(due[record["index"]].body)]
    faults = (
        [] if balanced and free_after <= FREE_WITHIN else [f"slots are free after {free_after:.2f} s, books: {books}"]
    )
    return {
        "storm": summary(records),
        "free_after_seconds": round(free_after, 3),
        "books": books,
        "wrong_answers": [*faults, *differences(stayed, references), *afterwards],
    }


def chats(model: str, decode: Any, vocab_size: int, context: int, options: argparse.Namespace) -> dict[str, list[Ask]]:
    """Requests whose prompts begin alike: turns of one conversation, and users with one long system prompt."""
    rng = random.Random(options.seed)

    def words(count: int) -> str:
        return str(decode([rng.randrange(FIRST_PLAIN_ID, vocab_size) for _ in range(count)]))

    def chat(messages: list[dict[str, str]]) -> Ask:
        body = {"model": model, "messages": messages, "max_tokens": 16, "temperature": 1, "seed": 1, "ignore_eos": True}
        return Ask("/v1/chat/completions", {**body, "stream": True, "stream_options": {"include_usage": True}})

    turn = context // (4 * options.turns)
    history: list[dict[str, str]] = []
    turns = []
    for _ in range(options.turns):
        history = [*history, {"role": "user", "content": words(turn // 2)}]
        turns.append(chat(history))
        history = [*history, {"role": "assistant", "content": words(turn // 4)}]
    system = {"role": "system", "content": words(context // 2)}
    users = [chat([system, {"role": "user", "content": words(12)}]) for _ in range(options.users)]
    return {"turns": turns, "users": users}


def prefix(server: Server, asks: dict[str, list[Ask]]) -> Json:
    """Times to the first token of the turns, one after the other, and of the users, all at once; and what was reused."""
    outcome: Json = {}
    for name, own in asks.items():
        before = server.metric("prefix_cache_hit_tokens_total"), server.metric("prefix_cache_query_tokens_total")
        records = _all_whole(fire(server.url, own, 1 if name == "turns" else len(own)))
        outcome[name] = {
            **summary(records),
            "first_token_ms_each": [round(1000 * (it["first"] - it["due"]), 2) for it in records],
            "hit_tokens": server.metric("prefix_cache_hit_tokens_total") - before[0],
            "query_tokens": server.metric("prefix_cache_query_tokens_total") - before[1],
            "texts": [it["text"] for it in records],
        }
    return outcome


def compare_prefixes(source: str, decode: Any, vocab_size: int, options: argparse.Namespace) -> Json:
    """With the cache, and without: the same answers, sooner or not."""
    outcomes: Json = {}
    for name, extra in (("with", []), ("without", [options.without] if options.without else [])):
        with serving(HOME, *server_arguments(source, options), *extra) as server:
            model, context = server.model()
            asks = chats(model, decode, vocab_size, context, options)
            fire(server.url, asks["users"][:1], 1)  # the first request of a process is slower
            outcomes[name] = prefix(server, asks)
    wrong = [
        f"{kind}: answer {number} differs without the prefix cache"
        for kind in ("turns", "users")
        for number, (a, b) in enumerate(
            zip(outcomes["with"][kind].pop("texts"), outcomes["without"][kind].pop("texts"), strict=True)
        )
        if a != b
    ]
    return {**outcomes, "wrong_answers": wrong}


def engine_alone(directory: Path, asks: list[Ask], options: argparse.Namespace) -> Json:
    """The engine's closed loop in a process without a server; the server is idle meanwhile."""
    spec = {
        "asks": [ask.document() for ask in asks],
        "clients": options.clients,
        "slots": options.slots,
        "threads": options.threads,
        "seconds": options.closed_seconds,
    }
    command = [sys.executable, "-m", "benchmarks.loading.closed", str(directory)]
    done = subprocess.run(command, input=json.dumps(spec), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def peers(server: Server, source: Path, asks: list[Ask], options: argparse.Namespace) -> Json:
    """Other servers of OpenAI's API under the same closed loop of whole answers, ours under it too, and ours over theirs."""
    if not options.peer:
        return {}

    tokenizer = Tokenizer(source)
    own, context = server.model()

    def closed_loop(target: Server, model: str) -> Json:
        own_asks = plain(asks, model, tokenizer, context)
        return summary(fire(target.url, own_asks, options.clients, options.closed_seconds))

    ours = closed_loop(server, own)
    outcomes: Json = {"ours": ours}
    for name in options.peer:
        with serving_peer(name, source, HOME, options.threads) as (peer, model):
            theirs = closed_loop(peer, model)
        speed = theirs["tokens_per_second"]
        outcomes[name] = {**theirs, "ours_over_theirs": ours["tokens_per_second"] / speed if speed else None}
    return outcomes


def server_arguments(source: str, options: argparse.Namespace) -> list[str]:
    given = {
        "model": source,
        "precision": options.precision,
        "max_length": options.max_length,
        "slots": options.slots,
        "threads": options.threads,
        "workers": options.workers,
    }
    return [*(f"{name}={value}" for name, value in given.items()), "max_queue=1024", *options.arg]


def run(options: argparse.Namespace) -> Json:
    """The mode's outcome."""
    source = options.model
    if source in LLAMAS:
        source = str(random_llama(source, HOME / f"{source}-llama"))
    home = demo.path() if source == "demo" else Path(source)
    tokenizer, vocab_size = Tokenizer(home), len(AutoTokenizer.from_pretrained(home))
    options.max_length = min(CONTEXT, AutoConfig.from_pretrained(home).max_position_embeddings)
    if options.mode == "prefix":
        return compare_prefixes(source, tokenizer.decode, vocab_size, options)
    with serving(HOME, *server_arguments(source, options)) as server:
        model, context = server.model()
        asks = mixed(model, vocab_size, context, options.distinct, options.seed)
        references = alone(server.url, asks)
        if options.mode == "storm":
            return storm(server, asks, references, options)
        outcome = {"engine_alone": engine_alone(decoder_of(source, options), asks, options)}
        outcome |= steady(server, asks, references, options)
        served, most = outcome["closed_loop"]["tokens_per_second"], outcome["engine_alone"]["tokens_per_second"]
        outcome["served_over_engine"] = round(served / most, 3)
        outcome["arrivals_over_closed_loop"] = round(outcome["poisson"]["tokens_per_second"] / served, 3)
        outcome["peers"] = peers(server, home, asks, options)
        return outcome


def decoder_of(source: str, options: argparse.Namespace) -> Path:
    """The directory of the decoder that the server made of a source."""
    from bento_kv import VerifiedDecoder
    from bento_kv.bento.store import get

    made = VerifiedDecoder(source, precision=options.precision, max_length=options.max_length)
    return Path(get(made.tag.name).path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", nargs="?", choices=["steady", "storm", "prefix"], default="steady")
    parser.add_argument(
        "--model",
        default="small",
        help=f"{' or '.join(LLAMAS)} (random Llamas of 2048 positions), demo, or a directory",
    )
    parser.add_argument("--precision", default="fp32", help="of the server's weights")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--clients", type=int, help="32; 300 in a storm")
    parser.add_argument("--closed-seconds", type=float, default=60.0, help="of each closed loop")
    parser.add_argument("--load", type=float, default=0.7, help="of the arrivals, as a part of the closed loop's rate")
    parser.add_argument("--rate", type=float, help="the arrivals' requests a second, instead")
    parser.add_argument("--distinct", type=int, default=48, help="different requests")
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--leave", type=float, default=0.5, help="storm: seconds within which a client is gone")
    parser.add_argument("--users", type=int, default=32)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--without", default="prefix_cache=false", help="prefix: the --arg that turns the cache off")
    parser.add_argument("--arg", action="append", default=[], help="another --arg for the server")
    parser.add_argument(
        "--peer", action="append", default=[], choices=NAMES, help="a server to compare with, on a random Llama"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--label", help="put into the name of the result's file")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the server is stopped too
    if missing := next(filter(None, map(cannot_serve, options.peer)), None):
        parser.error(missing)
    if options.peer and (options.model not in LLAMAS or options.mode != "steady"):
        parser.error(f"peers are compared in steady, on {' or '.join(LLAMAS)}")
    options.clients = options.clients or (300 if options.mode == "storm" else 32)
    os.environ["BENTOML_HOME"] = str(HOME)  # before bentoml is imported
    HOME.mkdir(parents=True, exist_ok=True)
    outcome = run(options)
    record = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": processor(),
        "versions": versions_of(("bentoml", "onnxruntime", "numpy")),
        "options": vars(options),
        **outcome,
    }
    label = f"-{options.label}" if options.label else ""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{datetime.now(UTC):%Y-%m-%d}-load-{options.mode}{label}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    shown = {name: value for name, value in outcome.items() if name != "memory_over_time_mib"}
    print(json.dumps(shown, indent=1))
    print(f"written to {path}", file=sys.stderr)
    if outcome["wrong_answers"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

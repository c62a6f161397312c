"""A server under mixed load for as long as it takes: right answers, balanced books, and memory that stays what it was.

    python -m benchmarks.soak [--seconds 600] [--load 0.7] [--clients 32] [--model demo]

Chats and completions, streamed and whole, sampled and greedy, with several choices, log-probabilities, stop texts and
salts, of which a third is dropped at a random moment. Exits with 1 if an answer differs from what its request gets alone,
if a request is still counted once all clients are gone, or if memory grows by more than 5 % after the first minute.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.load import alone, fire
from benchmarks.loading.clients import ask_all, sampling
from benchmarks.loading.report import differences, summary
from benchmarks.loading.server import ROOT, Server, serving
from benchmarks.loading.work import Ask, poisson
from bento_kv import demo
from bento_kv.text.tokenizer import Tokenizer

HOME = ROOT / "build" / "soak"
DISTINCT = 60  # requests
LEAVING = 1 / 3  # of the clients
GROWTH = 1.05  # of memory after the first minute, at most
SAMPLE_SECONDS = 1.0
SETTLING_SECONDS = 60

Json = dict[str, Any]


def requests(model: str, tokenizer: Tokenizer, context: int, seed: int) -> list[Ask]:
    """Different requests of every kind that the routes serve."""
    rng = random.Random(seed)
    topics = ["sums", "rivers", "the moon", "bread", "a long walk", "small numbers"]

    def text(tokens: int) -> str:
        words = " ".join(f"Tell me of {rng.choice(topics)}." for _ in range(tokens))
        return tokenizer.decode(tokenizer.encode(words, add_special_tokens=False)[:tokens])

    asks = []
    for number in range(DISTINCT):
        answer = rng.randint(1, min(48, context // 4))
        prompt = text(rng.randint(4, context // 2))
        body: Json = {"model": model, "max_tokens": answer, "seed": number, "temperature": number % 2 * 0.8}
        body |= {"ignore_eos": True} if number % 3 else {}
        body |= {"stream": True, "stream_options": {"include_usage": True}} if number % 4 else {}
        body |= {"cache_salt": f"of {number % 7}"} if number % 5 == 0 else {}
        body |= {"stop": [" the", "."]} if number % 6 == 1 else {}
        if number % 2:
            asks.append(Ask("/v1/chat/completions", {**body, "messages": [{"role": "user", "content": prompt}]}))
        else:
            asks.append(Ask("/v1/completions", {**body, "prompt": prompt, "logprobs": number % 5}))
    return asks


def dropping(due: Sequence[Ask], seed: int) -> list[Ask]:
    """The same, of which a part is dropped before most answers are whole."""
    rng = random.Random(seed)
    return [Ask(ask.path, ask.body, ask.at, rng.uniform(0, 0.2) if rng.random() < LEAVING else None) for ask in due]


def soak(server: Server, asks: list[Ask], options: argparse.Namespace) -> Json:
    """The outcome, with all that is wrong under `faults`."""
    references = alone(server.url, asks)
    rate = options.load * summary(fire(server.url, asks, options.clients, 20))["requests_per_second"]
    due = dropping(poisson(asks, rate, options.seconds, options.seed), options.seed)
    numbers = {id(ask.body): number for number, ask in enumerate(asks)}

    async def load() -> tuple[list[Json], list[float]]:
        async with sampling(server.memory, SAMPLE_SECONDS) as memory:
            return await ask_all(server.url, [ask.document() for ask in due], options.clients, None), memory

    records, memory = asyncio.run(load())
    for record in records:
        record["index"] = numbers[id(due[record["index"]].body)]
    stayed = [record for record in records if not record["left"]]
    failed = [f"request {it['index']}: {it['status']} {it['error']}" for it in stayed if it["error"] is not None]
    wrong = differences((it for it in stayed if it["error"] is None), references)
    settled = max(memory[: round(SETTLING_SECONDS / SAMPLE_SECONDS)])
    peak = max(memory)
    grown = [f"memory grew from {settled:.0f} to {peak:.0f} MiB"] if peak > GROWTH * settled else []
    return {
        "load": {"rate": round(rate, 2), **summary(records)},
        "memory_mib": {"first_minute": round(settled), "peak": round(peak), "last": round(memory[-1])},
        "faults": [*failed, *wrong, *unbalanced(server), *grown],
    }


def unbalanced(server: Server) -> list[str]:
    """What the books of a server without clients hold, and should not."""
    books = {name: server.metric(name) for name in ("num_requests_running", "num_requests_waiting")}
    books["kv_cache_used_tokens"] = server.metric("kv_cache_used_tokens")
    ended, timed = server.metric("request_success_total"), server.metric("e2e_request_latency_seconds_count")
    found = [f"{name} is {value:.0f}" for name, value in books.items() if value]
    return found if ended == timed else [*found, f"{ended:.0f} requests ended and {timed:.0f} were timed"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--load", type=float, default=0.7, help="of the arrivals, as a part of the closed loop's rate")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--model", default="demo", help="demo, or a directory")
    parser.add_argument("--arg", action="append", default=[], help="an --arg for the server")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["BENTOML_HOME"] = str(HOME)
    home = demo.path() if options.model == "demo" else Path(options.model)
    with serving(HOME, f"model={options.model}", "max_queue=1024", *options.arg) as server:
        model, context = server.model()
        outcome = soak(server, requests(model, Tokenizer(home), context, options.seed), options)
    print(json.dumps(outcome, indent=1))
    return 1 if outcome["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())

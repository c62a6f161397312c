"""What clients ask for: prompts and answers of mixed lengths, and when they come."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from bento_kv import demo
from bento_kv.text.tokenizer import Tokenizer

SHORTEST_PROMPT, LONGEST_PROMPT = 8, 1500  # tokens
SHORTEST_ANSWER, LONGEST_ANSWER = 4, 128
STAY = 0.1  # part of the clients that wait for their answer where most leave
FIRST_PLAIN_ID = 16  # below are special tokens
_SPECIAL = 4  # tokens that a server may put around a prompt


@dataclass(frozen=True)
class Ask:
    """One HTTP request.

    Attributes:
        path: under the server's address.
        body: as JSON.
        at: when it is due, seconds after the start; None: as soon as a client is free.
        leave: seconds after which the client is gone; None: it stays.
    """

    path: str
    body: dict[str, Any]
    at: float | None = None
    leave: float | None = None

    def document(self) -> dict[str, Any]:
        return asdict(self)


# Random Llamas to serve: layers, hidden size, inner size, query heads, heads of keys.
LLAMAS = {"small": (4, 256, 768, 8, 4), "135m": (30, 576, 1536, 9, 3)}


def random_llama(name: str, directory: Path) -> Path:
    """A random Llama with a context of 2048 positions and the demo's tokenizer, as a Hugging Face directory."""
    layers, hidden, inner, heads, kv_heads = LLAMAS[name]
    if (directory / "config.json").exists():
        return directory
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(demo.path())
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def mixed(model: str, vocab_size: int, max_length: int, count: int, seed: int) -> list[Ask]:
    """Distinct requests: lengths spread evenly over their logarithms, every second one sampled with a seed."""
    rng = random.Random(seed)
    asks = []
    for number in range(count):
        answer = _between(rng, SHORTEST_ANSWER, min(LONGEST_ANSWER, max_length // 4))
        length = _between(rng, SHORTEST_PROMPT, min(LONGEST_PROMPT, max_length - answer - 1))
        body = {
            "model": model,
            "prompt": [rng.randrange(FIRST_PLAIN_ID, vocab_size) for _ in range(length)],
            "max_tokens": answer,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"temperature": 0.8, "seed": number} if number % 2 else {"temperature": 0}),
        }
        asks.append(Ask("/v1/completions", body))
    return asks


def plain(asks: Sequence[Ask], model: str, tokenizer: Tokenizer, context: int) -> list[Ask]:
    """The same with texts for prompts and the fields that every server takes, answered as a whole.

    A text can have more tokens than those that it was decoded from, so it is cut to what fits in the context.
    """

    def text(ask: Ask) -> str:
        ids = tokenizer.encode(tokenizer.decode(ask.body["prompt"]), add_special_tokens=False)
        return tokenizer.decode(ids[: context - ask.body["max_tokens"] - _SPECIAL])

    return [
        Ask(
            ask.path,
            {
                "model": model,
                "temperature": 0,
                "prompt": text(ask),
                "max_tokens": ask.body["max_tokens"],
            },
        )
        for ask in asks
    ]


def poisson(asks: Sequence[Ask], rate: float, seconds: float, seed: int, *, leave: float | None = None) -> list[Ask]:
    """Requests drawn at random, coming at `rate` a second for so long; most leave within `leave` seconds, if given."""
    rng = random.Random(seed)
    at, due = 0.0, []
    while (at := at + rng.expovariate(rate)) < seconds:
        ask = asks[rng.randrange(len(asks))]
        stays = leave is None or rng.random() < STAY
        due.append(Ask(ask.path, ask.body, at, None if leave is None or stays else rng.uniform(0, leave)))
    return due


def _between(rng: random.Random, low: int, high: int) -> int:
    return round(math.exp(rng.uniform(math.log(low), math.log(high))))

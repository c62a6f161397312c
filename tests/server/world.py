"""A model of bytes to serve: everything real but the network's weights."""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import openai
import tokenizers
import uvicorn
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers
from uvicorn.protocols.http.h11_impl import H11Protocol

from bento_kv import errors
from bento_kv.contract.decoder import Decoder
from bento_kv.contract.plan import StepPlan
from bento_kv.engine.config import EngineConfig
from bento_kv.engine.engine import Engine
from bento_kv.engine.events import Recorder
from bento_kv.engine.observer import EngineStats, NullObserver, Observer
from bento_kv.engine.request import SamplingParams
from bento_kv.server.app import openai_app
from bento_kv.server.connections import ConnectionLimits, bounded
from tests.engine.fakes import FakeDecoder

MODEL = "org/parrot-1b"
VERIFICATION = {"schema": "bento_kv.verification/1", "passed": True, "manifest_sha256": "0123456789abcdef" * 4}
JSON = {"content-type": "application/json"}
EOS = 256
VOCAB_SIZE = 257
_ORDER = re.compile(rb"say:([^|]*)\|(?:\nassistant:)?")


class ByteTokenizer:
    """Token ids 0 to 255 are bytes and 256 ends a sequence."""

    def __init__(self) -> None:
        vocabulary = {_visible(byte): byte for byte in range(256)} | {"<eos>": EOS}
        self._tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self._tokenizer.decoder = decoders.ByteLevel()
        self._tokenizer.add_special_tokens(["<eos>"])

    def encode(self, text: str, *, add_special_tokens: bool = True, room: int | None = None) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], *, room: int | None = None) -> list[int]:
        if messages[-1]["role"] == "assistant":
            raise errors.RequestError("the conversation must not end with the assistant's turn", param="messages")
        return self.encode("".join(f"{turn['role']}:{turn['content']}\n" for turn in messages) + "assistant:")

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        return b"<eos>" if token_id == EOS else bytes([token_id])


def _visible(byte: int) -> str:
    """The character by which byte-level vocabularies (GPT-2's) write a byte."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in shown:
        return chr(byte)
    return chr(256 + sum(other not in shown for other in range(byte)))


def parrot(prefix: tuple[int, ...]) -> NDArray[np.float32]:
    """A model that obeys `say:TEXT|` and then ends, and babbles letters without an end where it is not told."""
    text = bytes(token for token in prefix if token < 256)
    logits = np.full(VOCAB_SIZE, -20, dtype=np.float32)
    orders = list(_ORDER.finditer(text))
    if orders:
        target, said = orders[-1][1], text[orders[-1].end() :]
        logits[target[len(said)] if len(said) < len(target) else EOS] = 20
        return logits
    digest = hashlib.blake2b(text, digest_size=8).digest()
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz ", dtype=np.uint8)
    logits[letters] = np.random.default_rng(int.from_bytes(digest)).normal(0, 2, len(letters))
    return logits


class Reasons(NullObserver):
    """Remembers why requests ended."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def finished(self, reason: str, e2e_seconds: float, prompt_tokens: int, generated_tokens: int) -> None:
        self.reasons.append(reason)


@dataclass
class World:
    """A backend, as the server asks for it, and where it is served."""

    engine: Engine
    observer: Any
    url: str = ""
    model_id: str = MODEL
    created: int = 1_700_000_000
    max_length: int = 0
    vocab_size: int = VOCAB_SIZE
    defaults: SamplingParams = field(default_factory=lambda: SamplingParams(stop_token_ids=frozenset({EOS})))
    verification: Mapping[str, Any] = field(default_factory=lambda: dict(VERIFICATION))
    tokenizer: Any = field(default_factory=ByteTokenizer)
    decoder: Any = None
    server: uvicorn.Server | None = None

    @property
    def model_names(self) -> frozenset[str]:
        return frozenset({self.model_id, self.model_id.rpartition("/")[-1]})

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", max_retries=0, **{"api_key": "none", **options})

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    def wait_until(self, condition: Callable[[EngineStats], bool]) -> None:
        """Wait for the engine's books to say so; a guard, not a measurement."""
        deadline = time.monotonic() + 60
        while not condition(self.engine.stats()):
            assert time.monotonic() < deadline, f"still {self.engine.stats()}"
            time.sleep(0.01)

    def wait_until_idle(self) -> None:
        self.wait_until(lambda stats: stats.running == stats.waiting == 0)


def _unhurried(plan: StepPlan) -> None:
    time.sleep(0.001)


@contextlib.contextmanager
def serving(
    *,
    slots: int = 4,
    max_queue: int = 64,
    max_length: int = 50_000,
    speculation: int = 0,
    before_step: Callable[[StepPlan], None] = _unhurried,
    wrap: Callable[[Decoder], Decoder] = lambda decoder: decoder,
    config: Mapping[str, Any] | None = None,
    recorders: Sequence[Recorder] = (),
    observer: Observer | None = None,
    app_options: Mapping[str, Any] | None = None,
    middleware: Callable[[Any], Any] = lambda app: app,
    connection_limits: ConnectionLimits | None = None,
    **backend: Any,
) -> Iterator[World]:
    """The app on a free port of the loopback device, over a real engine, for as long as the context lasts."""
    decoder = FakeDecoder(
        slots=slots, max_length=max_length, vocab_size=VOCAB_SIZE, logits=parrot, before_step=before_step
    )
    watching = observer or Reasons()
    limits = EngineConfig(slots=slots, max_queue=max_queue, speculation=speculation, **(config or {}))
    wrapped = wrap(decoder)
    engine = Engine(wrapped, ByteTokenizer().decode, limits, watching, recorders)
    engine.start()
    world = World(engine, watching, decoder=wrapped, max_length=max_length, **backend)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        world.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        served = uvicorn.Config(
            middleware(openai_app(world, **(app_options or {}))),
            log_level="warning",
            loop="asyncio",
            http="h11" if connection_limits is None else bounded(H11Protocol, connection_limits),
        )
        server = world.server = uvicorn.Server(served)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        try:
            yield world
        finally:
            server.should_exit = True
            engine.close(drain=False)
            thread.join(30)
    assert not thread.is_alive(), "the server did not stop"

"""Steps of a real decoder that fail when half of their work is done: what is tried again has the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest

from bento_kv.contract.decoder import Decoder
from bento_kv.contract.plan import Exactness
from bento_kv.engine.config import EngineConfig
from bento_kv.engine.engine import Engine
from bento_kv.engine.request import SamplingParams
from bento_kv.runtime.open import open_decoder
from bento_kv.text.tokenizer import Tokenizer
from tests.engine.fakes import Client, run_to_end
from tests.engine.faulty import FaultyDecoder, at, raises, together

PROMPTS = [(5, 6, 7), tuple(range(9, 40)), (8,), (11, 12, 13, 14)]


def answers(directory: Path, decoder: Decoder, exact: Exactness) -> list[tuple[object, ...]]:
    engine = Engine(decoder, Tokenizer(directory).decode, EngineConfig(slots=4, exact=exact))
    clients = [
        Client(str(number), prompt, SamplingParams(max_tokens=8, temperature=number % 2, seed=number, logprobs=3))
        for number, prompt in enumerate(PROMPTS)
    ]
    for client in clients:
        engine.submit(client.request)
    run_to_end(engine)
    return [client.result for client in clients]


@pytest.mark.parametrize("exact", ["batch", "full"])
def test_a_step_tried_again_row_by_row_has_the_same_bits(tiny_decoder: Path, exact: Exactness) -> None:
    def decoder() -> Decoder:
        return open_decoder(tiny_decoder, slots=4, exact=exact, threads=1)

    whole = answers(tiny_decoder, decoder(), exact)
    assert [result[3] for result in whole] == ["length"] * 4
    for fault in (
        raises(MemoryError(), together, after=True),
        raises(RuntimeError(), together),
        raises(RuntimeError(), at(0), after=True),
        raises(RuntimeError(), at(3), after=True),
    ):
        assert answers(tiny_decoder, FaultyDecoder(decoder(), fault), exact) == whole

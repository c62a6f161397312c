"""The engine's own speed without a server: so many requests in flight, in this process.

python -m benchmarks.loading.closed DECODER < asks.json
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from bento_kv.engine.config import EngineConfig
from bento_kv.engine.engine import Engine
from bento_kv.engine.request import Request, SamplingParams, StepOutput
from bento_kv.runtime.open import open_decoder
from bento_kv.text.tokenizer import Tokenizer


def run(directory: Path, spec: dict[str, Any]) -> dict[str, float]:
    """Tokens generated a second over `seconds`, with `clients` requests in flight, the next when one ends."""
    slots, threads = spec["slots"], spec["threads"]
    config = EngineConfig(slots=slots, threads=threads, max_queue=spec["clients"])
    engine = Engine(open_decoder(directory, slots=slots, threads=threads), Tokenizer(directory).decode, config)
    engine.start()
    free = threading.Semaphore(spec["clients"])
    tokens, ended = [0], [0]

    def emit(output: StepOutput) -> None:
        tokens[0] += len(output.token_ids)
        if output.finish_reason is not None:
            assert output.finish_reason == "length", output
            ended[0] += 1
            free.release()

    start = time.perf_counter()
    for number, ask in enumerate(itertools.cycle(spec["asks"])):
        free.acquire()
        if time.perf_counter() - start > spec["seconds"]:
            break
        body = ask["body"]
        params = SamplingParams(
            max_tokens=body["max_tokens"], temperature=body["temperature"], seed=body.get("seed"), top_k=0
        )
        engine.submit(Request(id=str(number), prompt_ids=tuple(body["prompt"]), params=params, emit=emit))
    seconds = time.perf_counter() - start
    rates = {"tokens_per_second": tokens[0] / seconds, "requests_per_second": ended[0] / seconds}
    engine.close(drain=False)
    return rates


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), json.load(sys.stdin))))

"""Many questions at once in a program of one's own, without a server.

python examples/script.py "What is 17 + 25?" "Reverse the word: stone."
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from bento_kv import EngineConfig, OnnxDecoderRunnable, VerifiedDecoder, load_model
from bento_kv.errors import OutOfTimeError


async def answer(runnable: OnnxDecoderRunnable, question: str) -> str:
    """One of them; those that are asked at the same time share the model's steps."""
    try:
        return await runnable.complete(question, max_queue_time=60)
    except OutOfTimeError as error:
        return f"(no answer: {error})"


async def answer_all(questions: Sequence[str]) -> list[str]:
    """All of them, in order."""
    decoder = VerifiedDecoder("demo").resolve()  # exported and proven the first time, taken from the store afterwards
    runnable = load_model(decoder, config=EngineConfig(slots=8))
    try:
        return await asyncio.gather(*(answer(runnable, question) for question in questions))
    finally:
        runnable.close(timeout=0)


if __name__ == "__main__":
    asked = sys.argv[1:] or ["What is 17 + 25?", "Hello!"]
    for question, text in zip(asked, asyncio.run(answer_all(asked)), strict=True):
        print(f"{question} {text.strip()}")

"""A service of one's own: questions in, answers out, with the model's own API beside it.

bentoml serve examples.own_service:Assistant
curl localhost:3000/ask -H 'Content-Type: application/json' -d '{"question": "What is 17 + 25?"}'
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace
from http import HTTPStatus

import bentoml
from bentoml.exceptions import BentoMLException

from bento_kv import EngineConfig, OnnxDecoderRunnable, VerifiedDecoder, openai_app
from bento_kv.errors import BentoKVError


def served() -> OnnxDecoderRunnable:
    """What answers in this process; the routes below are mounted before it exists."""
    runnable: OnnxDecoderRunnable = bentoml.get_current_service().runnable
    return runnable


@bentoml.asgi_app(openai_app(served))  # /v1/chat/completions and the others
@bentoml.service(name="assistant")
class Assistant:
    decoder = VerifiedDecoder("demo")  # or a Hugging Face directory or hub id; made and proven once

    def __init__(self) -> None:
        self.runnable = OnnxDecoderRunnable(self.decoder, EngineConfig(slots=4, max_queue=32))

    @bentoml.api
    async def ask(self, question: str, seconds: float = 60) -> str:
        """The whole answer, or its beginning if it takes longer than it may."""
        try:
            return await self.runnable.complete(question, max_time=seconds)
        except BentoKVError as error:  # each knows what HTTP calls it
            raise BentoMLException(str(error), error_code=HTTPStatus(error.http_status)) from error

    @bentoml.api
    async def tell(self, question: str) -> AsyncGenerator[str, None]:
        """The answer piece by piece, a little surprising."""
        warm = replace(self.runnable.defaults, temperature=0.7, top_p=0.9)
        async for text in self.runnable.stream_text(question, warm):
            yield text

    @bentoml.on_shutdown
    def close(self) -> None:
        self.runnable.close(timeout=10)

    def __is_ready__(self) -> bool:
        return self.runnable.engine.accepting

"""The service that `bentoml serve` and `bentoml build` take: one proven decoder behind an OpenAI-compatible API."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path

import bentoml
from bentoml.exceptions import BentoMLException
from pydantic import BaseModel, ConfigDict, Field

from bento_kv import EngineConfig, EngineMetrics, OnnxDecoderRunnable, RequireApiKey, VerifiedDecoder, openai_app
from bento_kv.contract.plan import Exactness
from bento_kv.errors import BentoKVError
from bento_kv.server.protocol import MAX_PRIORITY


class Arguments(BaseModel):
    """What `--arg name=value` takes, in `bentoml serve` and in `bentoml build`."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(
        "demo", description="a Hugging Face directory or hub id, a decoder directory, a store tag, or demo"
    )
    precision: str = Field("fp32", description="of the weights: fp32, int8 or int4")
    kv_cache: str = Field("fp32", description="element type of the KV cache: fp32 or int8")
    max_length: int | None = Field(None, ge=2, description="positions of a slot, prompt and answer together")
    slots: int = Field(16, ge=1, description="requests that decode at the same time")
    threads: int | None = Field(None, ge=1, description="of the model; as many as there are CPUs unless set")
    max_queue: int = Field(256, ge=0, description="requests that may wait; one more gets 429")
    max_tokens: int | None = Field(None, ge=1, description="cap on the tokens of one answer")
    max_queue_seconds: float | None = Field(None, gt=0, description="a request that waits longer for a slot gets 503")
    max_seconds: float | None = Field(None, gt=0, description="an answer that takes longer is cut")
    step_timeout: float = Field(
        300, gt=0, description="seconds after which a step counts as hanging; then /livez fails"
    )
    drain_timeout: float = Field(60, ge=0, description="seconds that requests in progress have after SIGTERM")
    workers: int = Field(1, ge=1, description="processes; they share CPUs, slots and queue")
    event_log: Path | None = Field(None, description="a file for a line of JSON per event of each request")
    exact: Exactness = Field("batch", description="batch or full")
    prefill_tokens: int = Field(256, ge=3, description="prompt tokens of a step while nobody decodes")
    prefill_chunk: int = Field(
        256, ge=3, description="prompt tokens that may stand between two tokens of an answer, prefill_tokens at most"
    )
    kv_tokens: int | None = Field(None, ge=2, description="positions of the KV cache in memory; by the memory there is")
    prefix_cache: bool = Field(True, description="reuse the keys and values of prompts that begin alike")
    speculation: int = Field(0, ge=0, description="guesses of the next tokens that a step may check for one request")


class Prompt(bentoml.IODescriptor):
    """What `POST /generate` takes; the model's own defaults where a field is left out."""

    model_config = ConfigDict(extra="forbid")

    prompt: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    seed: int | None = None
    priority: int = Field(0, ge=-MAX_PRIORITY, le=MAX_PRIORITY, description="lower is more urgent")
    cache_salt: str | None = Field(
        None, min_length=1, max_length=256, description="shares cached prefixes with its like"
    )


arguments = bentoml.use_arguments(Arguments)
decoder = VerifiedDecoder(
    arguments.model,
    precision=arguments.precision,
    kv_cache=arguments.kv_cache,
    max_length=arguments.max_length,
)


def current_runnable() -> OnnxDecoderRunnable:
    """The runnable of the service that runs in this process; the API is mounted before it exists."""
    runnable: OnnxDecoderRunnable = bentoml.get_current_service().runnable
    return runnable


@bentoml.asgi_app(openai_app(current_runnable))
@bentoml.service(
    name="bento_kv",
    # Seconds to the first byte. BentoML's answer to it is not in OpenAI's form, so our own deadlines should come first.
    traffic={"timeout": max(600, (arguments.max_seconds or 0) + arguments.step_timeout)},
    workers=arguments.workers,
)
class LanguageModel:
    decoder = decoder

    @bentoml.on_deployment
    @staticmethod
    def check() -> None:
        decoder.check()

    def __init__(self) -> None:
        config = EngineConfig(
            slots=arguments.slots,
            exact=arguments.exact,
            max_length=arguments.max_length,
            max_queue=arguments.max_queue,
            max_tokens=arguments.max_tokens,
            threads=arguments.threads,
            prefill_tokens=arguments.prefill_tokens,
            prefill_chunk=arguments.prefill_chunk,
            kv_tokens=arguments.kv_tokens,
            prefix_cache=arguments.prefix_cache,
            speculation=arguments.speculation,
            max_queue_seconds=arguments.max_queue_seconds,
            max_seconds=arguments.max_seconds,
            step_timeout=arguments.step_timeout,
        )
        self.runnable = OnnxDecoderRunnable(
            self.decoder,
            config,
            observer=EngineMetrics,
            event_log=arguments.event_log,
            workers=arguments.workers,
        )
        if threading.current_thread() is threading.main_thread():  # as in every worker; a test client has no signals
            self.runnable.drain_on_sigterm(timeout=arguments.drain_timeout)

    @bentoml.api(input_spec=Prompt)
    async def generate(
        self,
        prompt: str,
        max_tokens: int | None,
        temperature: float | None,
        seed: int | None,
        priority: int,
        cache_salt: str | None,
    ) -> AsyncGenerator[str, None]:
        """Answer a prompt, as a stream of text."""
        asked = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        params = replace(self.runnable.defaults, **{name: value for name, value in asked.items() if value is not None})
        begun = False
        try:
            async for text in self.runnable.stream_text(prompt, params, priority=priority, cache_salt=cache_salt):
                begun = True
                yield text
        except BentoKVError as error:
            if begun:  # BentoML ends a stream cleanly after an exception; only this cuts the connection
                raise asyncio.CancelledError(str(error)) from error
            if error.http_status == HTTPStatus.INTERNAL_SERVER_ERROR:
                raise
            raise BentoMLException(str(error), error_code=HTTPStatus(error.http_status)) from error

    @bentoml.on_shutdown
    def close(self) -> None:
        self.runnable.close(timeout=arguments.drain_timeout)

    def __is_alive__(self) -> bool:
        return self.runnable.engine.alive

    def __is_ready__(self) -> bool:
        return self.runnable.engine.accepting


if api_key := os.environ.get("BENTO_KV_API_KEY"):
    LanguageModel.add_asgi_middleware(RequireApiKey, api_key=api_key)

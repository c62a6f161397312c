"""The packaged service: one proven decoder behind an OpenAI-compatible API.

`bentoml serve bento_kv.bento.service:LanguageModel --arg model=SOURCE` runs it from anywhere.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import AsyncGenerator
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import Any

import bentoml

from bento_kv.bento.arguments import forget_path, pass_arguments_on, read_arguments
from bento_kv.bento.asked import DECODER_ALIAS
from bento_kv.bento.build import VerifiedDecoder
from bento_kv.bento.middleware import NoRefusals, Refusal, mend_middleware
from bento_kv.bento.runnable import OnnxDecoderRunnable
from bento_kv.bento.starting import settle, starting, supervise
from bento_kv.bento.supervisor import pass_second_signal_on
from bento_kv.bento.uvicorn_server import (
    app_of,
    believe_no_header,
    bound_connections,
    keep_connections,
    running_server,
    take_turns,
)
from bento_kv.engine.request import RequestOptions
from bento_kv.errors import BentoKVError
from bento_kv.server.app import BODIES, DEFAULT_MAX_BODY_BYTES, RequireApiKey, openai_app
from bento_kv.server.clients import Clients, current_caller
from bento_kv.server.connections import ConnectionLimits
from bento_kv.server.guard import Guard, OneLine
from bento_kv.server.metrics import EngineMetrics
from bento_kv.server.preparations import Preparations
from bento_kv.server.protocol import NativeRequest


class GenerateRequest(NativeRequest, bentoml.IODescriptor):
    """What BentoML knows of the body of `POST /generate`."""


config, engine_config = read_arguments()
decoder = VerifiedDecoder(
    config.model,
    precision=config.precision,
    kv_cache=config.kv_cache,
    max_length=engine_config.max_length,
    alias=DECODER_ALIAS,
    **config.quantization.given,
)
forget_path()


def current_runnable() -> OnnxDecoderRunnable:
    """The runnable of the service that runs in this process; the API is mounted before it exists."""
    runnable: OnnxDecoderRunnable = bentoml.get_current_service().runnable
    return runnable


preparations = Preparations(BODIES * DEFAULT_MAX_BODY_BYTES)
api_key, urgent_api_key = os.environ.get("BENTO_KV_API_KEY"), os.environ.get("BENTO_KV_URGENT_API_KEY")
may: dict[str, Any] = {"urgent_api_key": urgent_api_key, "min_priority": config.min_priority}


@bentoml.asgi_app(openai_app(current_runnable, api_key=api_key, preparations=preparations, **may))
@bentoml.service(
    name="bento_kv",
    # Seconds to the first byte. The deadlines that requests have should come first.
    traffic={"timeout": max(600, (engine_config.max_seconds or 0) + engine_config.step_timeout)},
    workers=config.workers,
)
class LanguageModel:
    """The packaged service; `bentoml.use_arguments` is read when its module is imported."""

    decoder = decoder

    @bentoml.on_deployment
    @staticmethod
    def check() -> None:
        decoder.check()
        pass_second_signal_on()
        pass_arguments_on()
        supervise()

    def __init__(self) -> None:
        with starting():
            self.runnable = OnnxDecoderRunnable(
                self.decoder,
                engine_config,
                model_id=config.model_id,
                aliases=(config.model,),
                parse_special_tokens=config.parse_special_tokens,
                observer=EngineMetrics,
                event_log=config.event_log,
                workers=config.workers,
            )
        if threading.current_thread() is threading.main_thread():  # as in every worker; a test client has no signals
            if (server := running_server()) is not None:
                bound_connections(server, ConnectionLimits(connections=config.max_connections))
                keep_connections(server)
                believe_no_header(server)
                mend_middleware(app_of(server))
                take_turns(server)
            self.runnable.drain_on_sigterm(timeout=config.drain_timeout)
            settle()

    @bentoml.api(input_spec=GenerateRequest)
    async def generate(self, prompt: str, **asked: Any) -> AsyncGenerator[str, None]:
        """Answer a prompt, as a stream of text."""
        given = {name: value for name, value in asked.items() if value is not None}
        options = {name: given.pop(name) for name in RequestOptions.__annotations__ if name in given}
        params = replace(self.runnable.defaults, **given)
        caller = current_caller.get()
        options |= {"client": caller.client, "cache_salt": caller.salt(options.get("cache_salt"))}
        begun = False
        try:
            ids = await self._encode(prompt)
            async for text in self.runnable.stream_text(ids, params, **options):
                begun = True
                yield text
        except BentoKVError as error:
            if begun:  # BentoML ends a stream cleanly after an exception; only this cuts the connection
                raise asyncio.CancelledError(str(error)) from error
            if error.http_status == HTTPStatus.INTERNAL_SERVER_ERROR and not error.told:
                raise
            raise Refusal(str(error), error_code=HTTPStatus(error.http_status)) from error

    async def _encode(self, prompt: str) -> list[int]:
        """The prompt's token ids, within the bounds of what is prepared at once."""
        encode = partial(self.runnable.tokenizer.encode_prompt, prompt, room=self.runnable.max_length - 1)
        return await preparations.run(encode, size=len(prompt.encode()), client=current_caller.get().client)

    @bentoml.on_shutdown
    def close(self) -> None:
        self.runnable.close(timeout=config.drain_timeout)

    def __is_alive__(self) -> bool:
        return self.runnable.engine.alive and not preparations.stalled

    def __is_ready__(self) -> bool:
        return self.runnable.engine.accepting and not preparations.stalled


logging.getLogger("bentoml.access").addFilter(OneLine())
logging.getLogger("bentoml._internal.server.http_app").addFilter(NoRefusals())
if api_key is not None:
    LanguageModel.add_asgi_middleware(  # type: ignore[attr-defined] # it is a Service
        RequireApiKey, api_key=api_key, urgent_api_key=urgent_api_key, open_metrics=config.open_metrics
    )
LanguageModel.add_asgi_middleware(  # type: ignore[attr-defined] # it is a Service
    Guard,
    bodies={"/generate": NativeRequest},
    max_body_bytes=DEFAULT_MAX_BODY_BYTES,
    preparations=preparations,
    clients=Clients(api_key, **may),
)

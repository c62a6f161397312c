"""What `--arg name=value` takes, in `bentoml serve` and in `bentoml build`: the service's own settings and the engine's."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import bentoml
from pydantic import BaseModel, ConfigDict, Field, create_model

from bento_kv.engine.config import EngineConfig
from bento_kv.engine.settings import Bounds, Setting, setting, settings
from bento_kv.server.fields import constraints


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceConfig:
    """What the packaged service takes besides an `EngineConfig`; `EngineConfig.max_length` counts for the export too."""

    model: str = setting(
        "demo", "a Hugging Face directory or hub id, a decoder directory, a model store tag, or `demo`"
    )
    precision: str = setting("fp32", "of the weights: fp32, int8 or int4")
    kv_cache: str = setting("fp32", "element type of the KV cache: fp32 or int8")
    model_id: str | None = setting(
        None, "the model's name in answers; its hub id or the folder's name unless set, and clients may use these too"
    )
    parse_special_tokens: bool = setting(
        False, "whether control tokens that a message spells out are control tokens; they are text unless set"
    )
    min_priority: int = setting(
        0,
        "the most urgent `priority` that clients may ask for, lower being more urgent; those with a key of "
        "`BENTO_KV_URGENT_API_KEY` may ask for any",
        bounds=Bounds(ge=-100, le=100),
    )
    open_metrics: bool = setting(
        False, "whether `/metrics` is open without a key where `BENTO_KV_API_KEY` asks for one everywhere else"
    )
    drain_timeout: float = setting(
        60.0, "seconds that requests in progress have after SIGTERM", bounds=Bounds(ge=0), unit="seconds"
    )
    max_connections: int = setting(
        512,
        "connections of a worker; one more takes the place of one that sends no request. Descriptors bound them, too",
        bounds=Bounds(ge=1),
    )
    workers: int = setting(1, "processes; they share CPUs, slots and queue", bounds=Bounds(ge=1))
    event_log: Path | None = setting(None, "a file for a line of JSON per event of each request; none unless set")


def argument_settings() -> tuple[Setting, ...]:
    """Every argument, in order."""
    return (*settings(ServiceConfig), *settings(EngineConfig))


def _field(each: Setting) -> tuple[Any, Any]:
    return each.type, Field(each.default, description=each.words, **constraints(each.type, each.bounds))


_FIELDS: dict[str, Any] = {each.name: _field(each) for each in argument_settings()}
# A model for BentoML, made of the two dataclasses; it names every argument that it does not know.
Arguments: type[BaseModel] = create_model("Arguments", __config__=ConfigDict(extra="forbid"), **_FIELDS)


def read_arguments() -> tuple[ServiceConfig, EngineConfig]:
    """The arguments of this process, or of the bento that it serves.

    Raises:
        bentoml.exceptions.InvalidArgument: one is unknown or out of range.
    """
    given = dict(bentoml.use_arguments(Arguments))
    service = {field.name: given.pop(field.name) for field in fields(ServiceConfig)}
    return ServiceConfig(**service), EngineConfig(**given)

"""What `--arg name=value` takes, in `bentoml serve` and in `bentoml build`: the service's own settings and the engine's."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import FrameType
from typing import Any

import bentoml
import yaml
from bentoml.exceptions import InvalidArgument
from pydantic import BaseModel, ConfigDict, Field, create_model

from bento_kv.contract.settings import Bounds, Setting, setting, settings
from bento_kv.engine.config import EngineConfig
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


# Under which a bento of the packaged service has its decoder.
DECODER_ALIAS = "bento_kv.decoder"
# What a bento's decoder was made with. Slots may still be made shorter than it allows (`max_length`).
BUILT_IN = ("model", "precision", "kv_cache")

_FIELDS: dict[str, Any] = {each.name: _field(each) for each in argument_settings()}
# A model for BentoML, made of the two dataclasses; it names every argument that it does not know.
Arguments: type[BaseModel] = create_model("Arguments", __config__=ConfigDict(extra="forbid"), **_FIELDS)


def read_arguments() -> tuple[ServiceConfig, EngineConfig]:
    """The arguments of this process; where it serves a bento, those that it was built with and, before them, those that the
    command line of `bentoml serve` has now.

    Raises:
        bentoml.exceptions.InvalidArgument: one is unknown or out of range, or built into the bento that is served.
    """
    pass_arguments_on()
    _check_names(_given())
    given = dict(bentoml.use_arguments(Arguments))
    service = {field.name: given.pop(field.name) for field in fields(ServiceConfig)}
    return ServiceConfig(**service), EngineConfig(**given)


def in_bento() -> bool:
    """Whether this process serves, or loads, a bento of the packaged service."""
    from bentoml._internal.configuration.containers import BentoMLContainer

    return DECODER_ALIAS in BentoMLContainer.model_aliases.get()


def pass_arguments_on() -> None:
    """Have the command line's arguments count where a bento is served, in this process and in the workers that it starts.

    BentoML loads a bento with the arguments of its build alone, and once more before it starts workers.

    Raises:
        bentoml.exceptions.InvalidArgument: one is built in.
    """
    if in_bento():
        given = _given()
        given.update(_changed(given, _said(sys.argv[1:])))


def forget_path() -> None:
    """While a bento is built: let it know its model by name, not by where that stands on the machine that builds."""
    given = _given()
    place = Path(str(given.get("model", ""))).expanduser()
    if given.get("model") and place.exists() and _building(sys._getframe()):
        given["model"] = place.resolve().name


def _given() -> dict[str, Any]:
    """BentoML's own record of the arguments: what is changed in it goes to the workers, or into the bento."""
    from bentoml._internal.configuration.containers import BentoMLContainer

    given: dict[str, Any] = BentoMLContainer.bento_arguments.get()
    return given


def _building(frame: FrameType | None) -> bool:
    """Whether a service is imported to be built: BentoML does not say so otherwise."""
    while frame is not None and frame.f_globals.get("__name__") != "bentoml._internal.bento.bento":
        frame = frame.f_back
    return frame is not None


def _said(words: list[str]) -> dict[str, Any]:
    """The arguments on a command line of `bentoml serve`, or on that of one of its workers, which gets them as JSON."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--arg", action="append", default=[])
    parser.add_argument("--arg-file", type=Path)
    parser.add_argument("--args", type=json.loads, default={})
    known, _ = parser.parse_known_args(words)
    said = dict(known.args)
    if known.arg_file is not None:
        with known.arg_file.open(encoding="utf-8") as file:
            said.update(yaml.safe_load(file) or {})
    said.update(word.partition("=")[::2] for word in known.arg)
    return said


def _changed(built: Mapping[str, Any], said: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is said, if nothing of it is built in and other than it was."""
    for name in BUILT_IN:
        has = str(built.get(name, Arguments.model_fields[name].default))
        if name in said and str(said[name]) != has:
            raise InvalidArgument(
                f"--arg {name}={said[name]}: the decoder of a bento is built in, this one with {name}={has}. Leave it out, "
                f"or build another bento with `bentoml build --arg {name}={said[name]}`"
            )
    return said


def _check_names(given: Iterable[str]) -> None:
    for name in given:
        if name not in Arguments.model_fields:
            close = difflib.get_close_matches(name, Arguments.model_fields, 1)
            raise InvalidArgument(
                f"--arg {name}: there is no such argument"
                + (f"; is {close[0]} meant?" if close else f". There are {', '.join(Arguments.model_fields)}")
            )

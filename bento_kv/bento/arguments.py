"""What `--arg name=value` takes, in `bentoml serve` and in `bentoml build`: the service's own settings and the engine's."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import bentoml
import yaml
from bentoml.exceptions import BentoMLException, InvalidArgument
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from bento_kv.bento.asked import DECODER_ALIAS
from bento_kv.contract.precision import AskedPrecision, KvCache
from bento_kv.contract.settings import Bounds, Setting, setting, settings
from bento_kv.contract.weight_options import NAMES, QuantizationOptions
from bento_kv.engine.config import EngineConfig
from bento_kv.server.fields import constraints


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceConfig:
    """What the packaged service takes besides an `EngineConfig`; `EngineConfig.max_length` counts for the export too."""

    model: str = setting(
        "demo", "a Hugging Face directory or hub id, a decoder directory, a model store tag, or `demo`"
    )
    precision: AskedPrecision | None = setting(
        None,
        "of the weights; `auto` takes the one of the fewest bits whose proof passes. Unless set, a model is exported to "
        "fp32, and a decoder is taken as it is",
    )
    kv_cache: KvCache | None = setting(None, "element type of the KV cache; as `precision` unless set")
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
    quantization: QuantizationOptions = field(default_factory=QuantizationOptions)  # each of its fields is an argument


def argument_settings() -> tuple[Setting, ...]:
    """Every argument, in order."""
    return (*settings(ServiceConfig), *settings(QuantizationOptions), *settings(EngineConfig))


def _field(each: Setting) -> tuple[Any, Any]:
    numbers = each.choices and not isinstance(each.choices[0], str)
    kind = Annotated[each.type, BeforeValidator(_number)] if numbers else each.type
    return kind, Field(each.default, description=each.words, **constraints(each.type, each.bounds))


def _number(word: Any) -> Any:
    """A choice among numbers, of a command line that knows words alone."""
    return int(word) if isinstance(word, str) and word.isdecimal() else word


# What a bento's decoder was made with. Slots may still be made shorter than it allows (`max_length`).
BUILT_IN = ("model", "precision", "kv_cache", *NAMES)

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
    service = {each.name: given.pop(each.name) for each in settings(ServiceConfig)}
    quantization = QuantizationOptions(**{name: given.pop(name) for name in NAMES})
    return ServiceConfig(**service, quantization=quantization), EngineConfig(**given)


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
    """While a bento is built: let it know its model, and the text that it was calibrated on, by name, and not by where
    they stand on the machine that builds."""
    given = _given()
    for name in ("model", "calibration"):
        place = Path(str(given.get(name, ""))).expanduser()
        if given.get(name) and place.exists() and _building(sys._getframe()):
            given[name] = place.resolve().name


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
    facts = _packed_facts()
    for name in BUILT_IN:
        has = [values[name] for values in (built, facts) if name in values]
        if name in said and _value(name, said[name]) not in [_value(name, each) for each in has]:
            this = f"with {name}={has[0]}" if has else f"without {name}"
            raise InvalidArgument(
                f"--arg {name}={said[name]}: the decoder of a bento is built in, this one {this}. Leave it out, "
                f"or build another bento with `bentoml build --arg {name}={said[name]}`"
            )
    return said


def _packed_facts() -> Mapping[str, Any]:
    """What the model store has of the decoder of this bento: what it came to be where nothing was said."""
    from bentoml._internal.configuration.containers import BentoMLContainer

    try:
        facts: Mapping[str, Any] = bentoml.models.get(BentoMLContainer.model_aliases.get()[DECODER_ALIAS]).info.metadata
    except (BentoMLException, ValueError):  # it is missed, with a sentence, where it is loaded
        return {}
    return {name: facts[name] for name in ("precision", "kv_cache") if name in facts}


def _value(name: str, word: Any) -> Any:
    """What a word of a command line stands for; the word itself where it stands for nothing."""
    try:
        return getattr(Arguments.model_validate({name: word}), name)
    except ValidationError:
        return word


def _check_names(given: Iterable[str]) -> None:
    for name in given:
        if name not in Arguments.model_fields:
            close = difflib.get_close_matches(name, Arguments.model_fields, 1)
            raise InvalidArgument(
                f"--arg {name}: there is no such argument"
                + (f"; is {close[0]} meant?" if close else f". There are {', '.join(Arguments.model_fields)}")
            )

"""Fields of requests: those that are settings of the engine, and those that take more than one shape, brought to one.

The latter raise at once, with the path of the item at fault, where a union of types would report one error for each shape
that did not match. `null` never comes here: it is the same as leaving a field out.
"""

from __future__ import annotations

from typing import Any, get_args

from pydantic import Field

from bento_kv.contract.settings import Bounds, expectation, named
from bento_kv.errors import RequestError
from bento_kv.server.jsontext import shorten

MAX_PROMPTS = 128
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 1024  # a longer one is no stop text; it would only hold an answer back
MAX_BIASES = 1024
MAX_METADATA = 16
TOKEN_ID_LIMIT = 2**31  # ids are 32-bit in tokenizers and graphs; larger ones overflow before anyone can refuse them

RawPrompt = str | tuple[int, ...]


def engine_field(record: type, name: str, *, note: str = "", lt: int | None = None, **ends: float) -> Any:
    """A request's optional field for a setting of the engine.

    Args:
        record: the dataclass that has the setting.
        name: of it.
        note: what else is said of its values.
        lt: what no machine could compute with begins here; not worth words.
        ends: of the range, `gt`, `ge` or `le`, where the API's is not the engine's.
    """
    setting = named(record, name)
    own = setting.bounds.given if setting.bounds is not None else {}
    if "ge" in ends:
        own.pop("gt", None)
    bounds = Bounds(**{**own, **ends})
    words = expectation(setting.type, bounds, setting.unit)
    return Field(None, description=f"{words}; {note}" if note else words, lt=lt, **constraints(setting.type, bounds))


def constraints(kind: Any, bounds: Bounds | None) -> dict[str, Any]:
    """A range of values of this type, as pydantic's `Field` takes it."""
    if bounds is None:
        return {}
    finite = {"allow_inf_nan": False} if float in (kind, *get_args(kind)) else {}
    return {**bounds.given, **finite}


def describe(value: Any) -> str:
    """`value` in a few words, for "..., got VALUE"."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return repr(shorten(value))
    if isinstance(value, int | float):
        return shorten(repr(value))
    kind = "list" if isinstance(value, list) else "object"
    return f"an empty {kind}" if not value else {"list": "a list", "object": "an object"}[kind]


def invalid(path: str, expected: str, value: Any) -> RequestError:
    """The field at `path` is not what it must be."""
    return RequestError(f"'{path}' must be {expected}, got {describe(value)}", param=path, code="invalid_value")


def parse_prompts(value: Any) -> tuple[RawPrompt, ...]:
    """A text, a list of texts, a list of token ids, or a list of those: as a tuple of prompts."""
    if isinstance(value, str):
        return (value,)
    expected = "a string, a list of strings, a list of token ids or a list of such lists"
    if not isinstance(value, list) or not value:
        raise invalid("prompt", expected, value)
    if type(value[0]) is int:
        return (_token_ids(value, "prompt"),)
    if len(value) > MAX_PROMPTS:
        message = f"'prompt' must have at most {MAX_PROMPTS} items, got {len(value)}"
        raise RequestError(message, param="prompt", code="invalid_value")
    kind = type(value[0])
    prompts: list[RawPrompt] = []
    for index, item in enumerate(value):
        path = f"prompt[{index}]"
        if type(item) is not kind or not isinstance(item, str | list):
            raise invalid(path, "a string or a list of token ids, as its neighbours", item)
        prompts.append(item if isinstance(item, str) else _token_ids(item, path))
    return tuple(prompts)


def _token_ids(value: list[Any], path: str) -> tuple[int, ...]:
    if not value:
        raise invalid(path, "a list of at least one token id", value)
    for index, item in enumerate(value):
        if type(item) is not int or not 0 <= item < TOKEN_ID_LIMIT:
            raise invalid(f"{path}[{index}]", "a token id", item)
    return tuple(value)


def parse_stop(value: Any) -> tuple[str, ...]:
    """A text or a list of up to four, none too long to be one: as a tuple."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or len(items) > MAX_STOPS:
        if isinstance(items, list):
            message = f"'stop' must have at most {MAX_STOPS} items, got {len(items)}"
            raise RequestError(message, param="stop", code="invalid_value")
        raise invalid("stop", f"a string or a list of up to {MAX_STOPS} strings", value)
    for index, item in enumerate(items):
        path = "stop" if items is not value else f"stop[{index}]"
        if not isinstance(item, str) or not item:
            raise invalid(path, "a non-empty string", item)
        if len(item) > MAX_STOP_CHARACTERS:
            raise invalid(path, f"a string of at most {MAX_STOP_CHARACTERS} characters", item)
    return tuple(items)


def parse_logit_bias(value: Any) -> dict[int, float]:
    """Token ids, which JSON makes strings, with a number between -100 and 100 for each."""
    if not isinstance(value, dict):
        raise invalid("logit_bias", "an object of token ids and numbers", value)
    if len(value) > MAX_BIASES:
        message = f"'logit_bias' must have at most {MAX_BIASES} entries, got {len(value)}"
        raise RequestError(message, param="logit_bias", code="invalid_value")
    biases: dict[int, float] = {}
    for key, bias in value.items():
        path = f"logit_bias.{shorten(key)}"
        if not (key.isascii() and key.isdigit() and len(key) <= 10 and int(key) < TOKEN_ID_LIMIT):
            message = f"the keys of 'logit_bias' must be token ids, got {describe(key)}"
            raise RequestError(message, param="logit_bias", code="invalid_value")
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise invalid(path, "a number between -100 and 100", bias)
        if int(key) in biases:
            raise RequestError(f"'logit_bias' names token {int(key)} twice", param="logit_bias", code="invalid_value")
        biases[int(key)] = float(bias)
    return biases


def parse_metadata(value: Any) -> dict[str, str]:
    """Up to sixteen strings by name."""
    expected = f"an object of up to {MAX_METADATA} strings"
    if not isinstance(value, dict) or len(value) > MAX_METADATA:
        raise invalid("metadata", expected, value)
    for key, item in value.items():
        if not isinstance(item, str):
            raise invalid(f"metadata.{shorten(key)}", "a string", item)
    return value


def parse_response_format(value: Any) -> None:
    """Text, which is what comes anyway, and nothing else."""
    if value == {"type": "text"}:
        return
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        raise invalid("response_format", "an object with a type", value)
    message = '\'response_format\' is only supported as {"type": "text"}'
    raise RequestError(message, param="response_format", code="unsupported_parameter")

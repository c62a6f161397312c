"""JSON as RFC 8259 means it: what Python's parser lets through beyond that is refused, and so is what has two readings."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any

from bento_kv.errors import RequestError

_MOST_DIGITS = 1000  # more take time that grows as their square, and Python writes only a few thousand of them
# A piece is a millisecond of writing. Log-probabilities are that deep in an answer: choices, a choice, logprobs, content.
_PIECE_OF_SCALARS, _PIECE_OF_OBJECTS, _NESTED_IN_PIECES = 4096, 16, 4
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def loads(body: bytes) -> Any:
    """The document in `body`.

    Raises:
        RequestError: not UTF-8, not JSON, `NaN` or `Infinity`, a number beyond a float, a key that comes twice in an
            object, half of a surrogate pair, or nesting too deep to read.
    """
    if not body.strip():
        raise RequestError("The request body is empty; a JSON object is expected.", code="invalid_json")
    try:
        text = body.decode("utf-8")
        document = json.loads(
            text, object_pairs_hook=_object, parse_int=_int, parse_float=_float, parse_constant=_constant
        )
        if _SURROGATE_ESCAPE.search(text):
            json.dumps(document, ensure_ascii=False).encode("utf-8")
    except UnicodeError as error:
        raise RequestError("The request body is not valid Unicode text in UTF-8.", code="invalid_json") from error
    except RecursionError as error:
        raise RequestError("The request body is nested too deeply.", code="invalid_json") from error
    except ValueError as error:
        raise RequestError(f"The request body is not valid JSON: {error}.", code="invalid_json") from error
    return document


def dumps(document: Any) -> str:
    """`document` on one line, characters as they are.

    Raises:
        ValueError: it holds a NaN or an infinity.
    """
    return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def dumps_in_pieces(document: Any) -> str:
    """The same, of what may be megabytes: written piece by piece, between which other threads run. Python's writer keeps
    them all waiting for 0.3 s a million numbers."""
    return _written(document, _NESTED_IN_PIECES)


def _written(value: Any, depth: int) -> str:
    if isinstance(value, dict) and depth:
        return "{" + ",".join(f"{dumps(str(name))}:{_written(part, depth - 1)}" for name, part in value.items()) + "}"
    if not isinstance(value, list):
        return dumps(value)
    if any(isinstance(item, dict | list) for item in value[:1]):
        if depth:
            return "[" + ",".join(_written(item, depth - 1) for item in value) + "]"
        return _in_pieces(value, _PIECE_OF_OBJECTS)
    return _in_pieces(value, _PIECE_OF_SCALARS)


def _in_pieces(items: list[Any], size: int) -> str:
    pieces = (dumps(items[begin : begin + size])[1:-1] for begin in range(0, len(items), size))
    return "[" + ",".join(pieces) + "]"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {shorten(twice)!r} comes twice in one object")
    return fields


def _int(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"the number {shorten(digits)} is too large")
    return int(digits)


def _float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"the number {shorten(digits)} is too large")
    return number


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def shorten(text: str, limit: int = 60) -> str:
    """`text`, or its beginning: an error message is no place for a megabyte of somebody's input."""
    return text if len(text) <= limit else text[: limit - 1] + "…"

"""From the bytes of a body to a request, or to an error that names the field and says what it must be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from bento_kv.errors import RequestError
from bento_kv.server import jsontext, protocol
from bento_kv.server.fields import describe, invalid

B = TypeVar("B", bound=protocol.Body)

_NESTED = (protocol.Message, protocol.TextPart, protocol.StreamOptions)
_EXPECTED_INSIDE = {name: field.description or "" for body in _NESTED for name, field in body.model_fields.items()}


def parse(body: bytes, kind: type[B]) -> B:
    """The request in `body`.

    Raises:
        RequestError: it is not JSON, or not a request of this kind; the first thing that is wrong.
    """
    document = jsontext.loads(body)
    if not isinstance(document, dict):
        raise RequestError(f"The request body must be a JSON object, got {describe(document)}.", code="invalid_json")
    try:
        return kind.model_validate(document)
    except ValidationError as failure:
        errors = failure.errors(include_url=False)
        # A required field that is missing says less than one that is there and wrong.
        error = next((error for error in errors if error["type"] != "missing"), errors[0])
        raise _explain(error, kind) from None


def _explain(error: ErrorDetails, kind: type[protocol.Body]) -> RequestError:
    path = _path(error["loc"])
    reason = error["type"]
    if reason in ("unknown_parameter", "unsupported_parameter"):
        name = jsontext.shorten(error["ctx"]["name"])
        path = f"{path}.{name}" if path else name
        what = "is not a known field" if reason == "unknown_parameter" else "is not supported by this server"
        return RequestError(f"'{path}' {what}", param=path, code=reason)
    if reason == "missing":
        return RequestError(f"'{path}' is required", param=path, code="missing_required_parameter")
    return invalid(path, _expected(error["loc"], kind), error["input"])


def _path(loc: Sequence[int | str]) -> str:
    """`('messages', 0, 'content')` as `messages[0].content`."""
    path = ""
    for part in loc:
        path += f"[{part}]" if isinstance(part, int) else f".{jsontext.shorten(part)}" if path else part
    return path


def _expected(loc: Sequence[int | str], kind: type[protocol.Body]) -> str:
    """What the field must be, in its own words."""
    *above, last = loc
    if isinstance(last, int):
        return "a token id" if above[-1] in ("tokens", "stop_token_ids") else "an object"
    return _EXPECTED_INSIDE[last] if above else kind.model_fields[last].description or ""

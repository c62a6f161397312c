"""Errors in OpenAI's form, `{"error": {"message", "type", "param", "code"}}`.

What the package raises knows its own status, type and code (`bento_kv.errors`); what is wrong with an HTTP request as
such, before it asks for anything, is here.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from bento_kv.errors import BentoKVError, RequestError
from bento_kv.server.jsontext import shorten

_LOG = logging.getLogger(__name__)


class Problem(Exception):
    """An answer that is an error.

    Args:
        status: HTTP status.
        message: what is wrong and what to do, for the client.
        type: OpenAI's class of the error.
        param: path of the field at fault, as `messages[0].content`, if one is.
        code: a short machine-readable reason, if there is one.
        headers: what the answer's head adds.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The answer's JSON document."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def problem_of(error: Exception, *, request_id: str) -> Problem:
    """The answer to an exception. What is not a client's business is logged under `request_id` and told to nobody."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, BentoKVError) and (error.told or error.http_status != HTTPStatus.INTERNAL_SERVER_ERROR):
        retry = {} if error.retry_after is None else {"retry-after": str(max(1, math.ceil(error.retry_after)))}
        return Problem(
            error.http_status,
            str(error),
            type=error.error_type,
            param=error.param if isinstance(error, RequestError) else None,
            code=error.code,
            headers=retry,
        )
    _LOG.error("request %s failed", request_id, exc_info=error)
    return _internal(request_id)


def _internal(request_id: str) -> Problem:
    """With the id under which the log has the cause."""
    message = f"The server failed while it processed the request. Its log has the cause under {request_id}."
    return Problem(BentoKVError.http_status, message, type=BentoKVError.error_type, code=BentoKVError.code)


def no_such_model(name: str, served: str) -> Problem:
    """Another model than the one that is served, as in OpenAI's API."""
    message = f"The model {shorten(name)!r} does not exist here; this server has {served!r}."
    return Problem(404, message, param="model", code="model_not_found")


def unauthorized() -> Problem:
    """401: the key is missing or not the one this server was started with."""
    return Problem(
        401,
        "The API key is missing or incorrect. Send it as 'Authorization: Bearer KEY'.",
        type="authentication_error",
        code="invalid_api_key",
        headers={"www-authenticate": "Bearer"},
    )


def not_found(path: str) -> Problem:
    """404: no such route."""
    return Problem(404, f"There is nothing at {path}.", code="unknown_url")


def method_not_allowed(method: str, path: str, allowed: str) -> Problem:
    """405; `allowed` is the value of the Allow header."""
    message = f"{path} does not take {method}; it takes {allowed}."
    return Problem(405, message, code="method_not_allowed", headers={"allow": allowed})


def too_large(limit: int) -> Problem:
    """413: the body has more than `limit` bytes."""
    return Problem(413, f"The request body is larger than {limit} bytes.", code="request_too_large")


def too_slow(seconds: float) -> Problem:
    """408: the body did not come in so many seconds."""
    message = f"The request body did not arrive within {seconds:g} seconds."
    return Problem(408, message, code="request_not_sent")


def gateway_timeout(seconds: float) -> Problem:
    """504: no answer has begun in so many seconds."""
    message = f"The answer did not begin within {seconds:g} seconds."
    return Problem(504, message, type="server_error", code="request_timeout")


def not_json() -> Problem:
    """415: a web page may post anything but JSON to any server that its reader's browser can reach, unasked."""
    return Problem(
        415, "The request body must be sent as 'Content-Type: application/json'.", code="unsupported_media_type"
    )

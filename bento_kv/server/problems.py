"""Errors in OpenAI's form, `{"error": {"message", "type", "param", "code"}}`, and the HTTP status of each.

Types and codes are those that OpenAI's API answers with (https://platform.openai.com/docs/guides/error-codes), so that
a client library raises the exception its user expects.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from bento_kv.engine.deadlines import Timeout
from bento_kv.errors import ContextLengthError, EngineClosedError, QueueFullError, RequestError

_LOG = logging.getLogger(__name__)
_RETRY_AFTER = 5  # seconds: about the time in which a replacement is found


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
    """The answer to an exception. What is not raised on purpose is logged under `request_id` and told to nobody."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, RequestError):
        code = error.code or ("context_length_exceeded" if isinstance(error, ContextLengthError) else None)
        return Problem(400, str(error), param=error.param, code=code)
    if isinstance(error, QueueFullError):
        return Problem(
            429,
            str(error),
            type="rate_limit_error",
            code="rate_limit_exceeded",
            headers={"retry-after": str(max(1, math.ceil(error.retry_after)))},
        )
    if isinstance(error, EngineClosedError):
        return unavailable(str(error))
    _LOG.error("request %s failed", request_id, exc_info=error)
    return internal(request_id)


def unavailable(message: str, *, code: str = "service_unavailable") -> Problem:
    """503: nothing is wrong with the request, but this process will not serve it."""
    headers = {"retry-after": str(_RETRY_AFTER)}
    return Problem(503, message, type="server_error", code=code, headers=headers)


def timed_out(deadline: Timeout) -> Problem:
    """503: there is no answer in time. Not 408, which says that the *client* was slow to send its request, and which
    proxies answer with of their own accord; what is wrong here is the load, and another server may have less."""
    if deadline == "queue":
        message = "The request waited for a free slot for longer than it may; try again later, or with a longer max_queue_time."
        return unavailable(message, code="queue_timeout")
    message = "The request ran out of time before its first token; try again later, or with a longer max_time."
    return unavailable(message, code="request_timeout")


def internal(request_id: str) -> Problem:
    """500, with the id under which the log has the cause."""
    message = f"The server failed while it processed the request. Its log has the cause under {request_id}."
    return Problem(500, message, type="server_error", code="internal_error")


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

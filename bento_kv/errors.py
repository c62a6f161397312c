"""Every error that bento_kv raises on purpose, and what a client is answered when one ends its request.

    BentoKVError
    ├── SourceError              a model source cannot be found or read
    ├── ExportError              a model cannot be turned into a decoder
    │   └── UnsupportedArchitecture
    ├── ManifestError            a decoder directory is not what its manifest says
    │   └── IntegrityError       a file's hash is not the manifest's
    ├── VerificationError        a proof failed, is missing, or does not hold on this machine
    ├── DecoderError             a step was asked for, or went, wrong
    ├── GraphLimitError          a graph does not end, or takes more memory than there is
    ├── TokenizerError           the model's tokenizer fails, or does not end
    ├── TraceError               a step trace cannot be read as one
    ├── MetricsError             a server's metrics cannot be read
    ├── RequestError             a request cannot be served as it is
    │   ├── ContextLengthError   prompt and answer do not fit in the context
    │   └── TemplateLimitError   the chat template takes more than it may
    ├── QueueFullError           no room for another waiting request
    ├── OutOfTimeError           a request has no answer within its time
    ├── UnreadError              an answer was not read
    └── EngineClosedError        the engine takes no more requests

Messages name the thing and the remedy in one sentence or two; callers may show them to users as they are. Types and codes
are those of OpenAI's API (https://platform.openai.com/docs/guides/error-codes), so that a client library raises the
exception that its user expects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bento_kv.contract.remedies import Remedy

__all__ = [
    "BentoKVError",
    "ContextLengthError",
    "DecoderError",
    "EngineClosedError",
    "ExportError",
    "GraphLimitError",
    "IntegrityError",
    "ManifestError",
    "MetricsError",
    "OutOfTimeError",
    "QueueFullError",
    "RequestError",
    "SourceError",
    "TemplateLimitError",
    "TokenizerError",
    "TraceError",
    "UnreadError",
    "UnsupportedArchitecture",
    "VerificationError",
]

_REPLACEMENT_SECONDS = 5  # about the time in which another server is found, or this one has less to do


class BentoKVError(Exception):
    """Base of all errors that bento_kv raises on purpose.

    Attributes:
        http_status: of the answer to a request that ends with it.
        told: whether the message is for the client; it never is with 500 otherwise, but for the log.
        error_type: OpenAI's class of the error.
        code: a short machine-readable reason, as OpenAI's `code`; None if the type says it all.
        retry_after: seconds after which trying again makes sense; None if it never does.
    """

    http_status: ClassVar[int] = 500
    told: ClassVar[bool] = False
    error_type: ClassVar[str] = "server_error"
    code: str | None = "internal_error"
    retry_after: float | None = None


class SourceError(BentoKVError):
    """A model source (directory, hub id or store tag) cannot be found or read."""


class ExportError(BentoKVError):
    """A model cannot be turned into a decoder."""


class UnsupportedArchitecture(ExportError):
    """The architecture keeps its state, or computes attention, in a way that the exporter cannot carry over."""


class ManifestError(BentoKVError):
    """A decoder directory is not what its manifest says, or has none."""


class IntegrityError(ManifestError):
    """A file of a decoder directory was changed after the manifest or the proof was written."""


class VerificationError(BentoKVError):
    """A proof failed, is missing, or does not hold on this machine.

    Args:
        message: which, and why.
        remedies: options of an export with which it may pass, the cheapest first, if any are known.
    """

    def __init__(self, message: str, *, remedies: Sequence[Remedy] = ()) -> None:
        super().__init__(message)
        self.remedies = tuple(remedies)


class DecoderError(BentoKVError):
    """A step that the decoder cannot take, or that failed while it ran."""


class GraphLimitError(BentoKVError):
    """Of a graph that somebody else made: a run takes more time or memory than it may, which says nothing of its export."""


class TokenizerError(BentoKVError):
    """The model's own tokenizer fails on a text or on token ids, or does not come to an end."""

    told = True
    code = "tokenizer_error"


class TraceError(BentoKVError):
    """A step trace cannot be read as one; the message names the line, the field and the remedy."""


class MetricsError(BentoKVError):
    """A server that cannot be watched: it is not there, or its metrics are not this engine's."""


class RequestError(BentoKVError):
    """A request that cannot be served as it is.

    Args:
        message: what is wrong and what to do, for the client.
        param: the request's field that is at fault, if one is.
        code: a short machine-readable reason; the class's own unless given.
    """

    http_status = 400
    error_type = "invalid_request_error"
    code = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        if code is not None:
            self.code = code


class ContextLengthError(RequestError):
    """Prompt and answer do not fit in the context."""

    code = "context_length_exceeded"


class TemplateLimitError(RequestError):
    """The model's chat template takes more time, memory or text than it may for these messages."""

    code = "template_limit"

    def __init__(self, message: str) -> None:
        super().__init__(message, param="messages")


class QueueFullError(BentoKVError):
    """No room for another waiting request.

    Args:
        message: what is full.
        retry_after: seconds after which trying again makes sense, an estimate.
    """

    http_status = 429
    error_type = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class OutOfTimeError(BentoKVError):
    """A request was given up because there was no answer within the time that it had.

    503 and not 408, which says that the *client* was slow to send its request, and which proxies answer with of their own
    accord; what is wrong here is the load, and another server may have less.

    Args:
        message: which time it was.
        code: the same for machines.
    """

    http_status = 503
    retry_after = _REPLACEMENT_SECONDS

    def __init__(self, message: str, *, code: str = "request_timeout") -> None:
        super().__init__(message)
        self.code = code


class UnreadError(BentoKVError):
    """An answer was ended because its reader left too much of it unread."""

    http_status = 408
    error_type = "invalid_request_error"
    code = "answer_not_read"

    def __init__(self) -> None:
        super().__init__("The answer was ended because it was not read.")


class EngineClosedError(BentoKVError):
    """The engine is shutting down or has failed, and takes no more requests."""

    http_status = 503
    code = "service_unavailable"
    retry_after = _REPLACEMENT_SECONDS


def first_line(error: BaseException) -> str:
    """What a foreign error says, in one line; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]

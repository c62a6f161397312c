"""Every error that bento_kv raises on purpose.

    BentoKVError
    ├── SourceError              a model source cannot be found or read
    ├── ExportError              a model cannot be turned into a decoder
    │   └── UnsupportedArchitecture
    ├── ManifestError            a decoder directory is not what its manifest says
    │   └── IntegrityError       a file's hash is not the manifest's
    ├── VerificationError        a proof failed, is missing, or does not hold on this machine
    ├── DecoderError             a step was asked for, or went, wrong
    ├── TraceError               a step trace cannot be read as one
    ├── MetricsError             a server's metrics cannot be read
    ├── RequestError             a request cannot be served as it is (HTTP 400)
    │   └── ContextLengthError   prompt and answer do not fit in the context
    ├── QueueFullError           no room for another waiting request (HTTP 429)
    ├── OutOfTimeError           a request has no answer within its time (HTTP 503)
    └── EngineClosedError        the engine takes no more requests (HTTP 503)

Messages name the thing and the remedy in one sentence or two; callers may show them to users as they are.
"""

from __future__ import annotations


class BentoKVError(Exception):
    """Base of all errors that bento_kv raises on purpose."""


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
    """A proof failed, is missing, or does not hold on this machine."""


class DecoderError(BentoKVError):
    """A step that the decoder cannot take, or that failed while it ran."""


class TraceError(BentoKVError):
    """A step trace cannot be read as one; the message names the line, the field and the remedy."""


class MetricsError(BentoKVError):
    """A server that cannot be watched: it is not there, or its metrics are not this engine's."""


class RequestError(BentoKVError):
    """A request that cannot be served as it is.

    Args:
        message: what is wrong and what to do, for the client.
        param: the request's field that is at fault, if one is.
        code: a short machine-readable reason, as OpenAI's `code`.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ContextLengthError(RequestError):
    """Prompt and answer do not fit in the context."""


class QueueFullError(BentoKVError):
    """No room for another waiting request.

    Args:
        message: what is full.
        retry_after: seconds after which trying again makes sense, an estimate.
    """

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class OutOfTimeError(BentoKVError):
    """A request was given up because there was no answer within the time that it had."""


class EngineClosedError(BentoKVError):
    """The engine is shutting down or has failed, and takes no more requests."""


def first_line(error: BaseException) -> str:
    """What a foreign error says, in one line; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]

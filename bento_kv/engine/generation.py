"""One accepted request on the engine thread: how its logits become events."""

from __future__ import annotations

import logging
import time

import numpy as np
from numpy.typing import NDArray

from bento_kv.engine.deadlines import Deadlines
from bento_kv.engine.logits import token_logprobs
from bento_kv.engine.request import Detokenize, FinishReason, Request, StepOutput
from bento_kv.engine.sampler import Sampler
from bento_kv.engine.scheduler import SequenceState
from bento_kv.engine.text import OutputText
from bento_kv.errors import BentoKVError, DecoderError

logger = logging.getLogger(__name__)


class Generation:
    """A request, its progress, and what turns logits into text.

    Attributes:
        request: as it was submitted.
        sequence: tokens and counts; the scheduler keeps them.
        arrived: when the request was submitted; all times are `time.perf_counter` seconds.
        admitted: when its first step began, if it has.
        last_token: when its last token was chosen, if one was.
    """

    def __init__(self, request: Request, max_tokens: int, detokenize: Detokenize, deadlines: Deadlines) -> None:
        self.request = request
        self.sequence = SequenceState(request.id, list(request.prompt_ids), len(request.prompt_ids))
        self.arrived = time.perf_counter()
        self.admitted: float | None = None
        self.last_token: float | None = None
        self._ends = deadlines.ends(self.arrived)
        self._max_tokens = max_tokens
        self._sampler = Sampler(request.params, request.prompt_ids)
        self._text = OutputText(detokenize, request.params.stop)

    @property
    def deadline(self) -> float:
        """When it is out of time, as it stands."""
        return self._ends.queue if self.admitted is None else self._ends.total

    def time_out(self) -> StepOutput:
        """The last event of a request that is out of time: the rest of its text, or that there is none."""
        if self.last_token is None:
            return StepOutput(finish_reason="abort", timeout="queue" if self.admitted is None else "total")
        text, stop = self._text.finish()
        if stop is not None:
            return StepOutput(text=text, finish_reason="stop", stop_reason=stop)
        return StepOutput(text=text, finish_reason="length", timeout="total")

    def advance(self, logits: NDArray[np.float32]) -> StepOutput:
        """Choose the next token from its logits `[vocab_size]`. What fails here ends this request, and no other."""
        try:
            return self._advance(logits)
        except Exception as error:
            logger.exception("request %s ends with an error", self.request.id)
            return failure("the output could not be continued", error)

    def _advance(self, logits: NDArray[np.float32]) -> StepOutput:
        if not np.isfinite(logits).all():
            raise DecoderError(f"the decoder's logits for request {self.request.id} hold NaN or infinity")
        params = self.request.params
        token_id = self._sampler.choose(logits)
        logprobs = () if params.logprobs is None else (token_logprobs(logits, token_id, params.logprobs),)
        self._sampler.record(token_id)

        stop: str | int | None = None
        reason: FinishReason | None = None
        if token_id in params.stop_token_ids:  # its own text is not part of the output
            text, stop = self._text.finish()
            stop = token_id if stop is None else stop
        else:
            text, stop = self._text.push(token_id)
            if stop is None and self.sequence.generated + 1 == self._max_tokens:
                tail, stop = self._text.finish()
                text, reason = text + tail, "length"
        if stop is not None:
            reason = "stop"
        return StepOutput(text=text, token_ids=(token_id,), logprobs=logprobs, finish_reason=reason, stop_reason=stop)


def failure(what: str, error: BaseException) -> StepOutput:
    """The last event of a request that something went wrong with.

    Our own messages are written for clients; those of others may tell what is none of their business.
    """
    why = str(error) if isinstance(error, BentoKVError) else f"{type(error).__name__}; the log has the details"
    return StepOutput(finish_reason="error", error=f"{what}: {why}")

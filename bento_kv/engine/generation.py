"""One accepted request on the engine thread: how its logits become events."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bento_kv.engine.deadlines import Deadlines
from bento_kv.engine.logits import token_logprobs
from bento_kv.engine.lookup import PromptLookup, Speculation
from bento_kv.engine.output_text import OutputText
from bento_kv.engine.request import Detokenize, FinishReason, Request, StepOutput, TokenLogprobs
from bento_kv.engine.sampler import Sampler
from bento_kv.engine.sequence import SequenceState
from bento_kv.errors import BentoKVError, DecoderError

logger = logging.getLogger(__name__)


class Generation:
    """A request, its progress, and what turns logits into text.

    Args:
        request: as it was submitted, in range.
        max_tokens: tokens that it may generate.
        detokenize: token ids to text.
        deadlines: how long it may wait and take.
        speculation: drafts that a step may check, unless the request says.
        spare_guess: guess for the room that a step may have to spare, if the request says nothing of drafts.

    Attributes:
        request: as it was submitted.
        sequence: tokens and counts; the scheduler keeps them.
        arrived: when the request was submitted; all times are `time.perf_counter` seconds.
        admitted: when its first step began, if it has.
        last_token: when its last token was chosen, if one was.
    """

    def __init__(
        self,
        request: Request,
        max_tokens: int,
        detokenize: Detokenize,
        *,
        deadlines: Deadlines,
        speculation: int = 0,
        spare_guess: bool = False,
    ) -> None:
        self.request = request
        self.sequence = SequenceState(
            request.id,
            list(request.prompt_ids),
            len(request.prompt_ids),
            positions=len(request.prompt_ids) + max_tokens,
            priority=request.priority,
            salt=request.cache_salt,
            client=request.client,
        )
        self.arrived = time.perf_counter()
        self.admitted: float | None = None
        self.last_token: float | None = None
        self._ends = deadlines.ends(self.arrived)
        self._left = max_tokens  # tokens that may still be chosen
        asked = request.params.speculation
        self._most_drafts = speculation if asked is None else asked
        self._speculation: Speculation | None = None  # until the first token: who waits has no need of it
        # Never both: what is checked to spare depends on the load, and what is speculated on must not.
        self._guesses = spare_guess and asked is None and not speculation
        self._spare: PromptLookup | None = None  # likewise
        self._sampler = Sampler(request.params, request.prompt_ids)
        self._text = OutputText(detokenize, request.params.stop, request.prompt_ids)

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

    def advance(self, logits: NDArray[np.float32], drafts: Sequence[int] = ()) -> StepOutput:
        """Choose the next token, and one more for each draft that turns out to be what is chosen.

        Every token is chosen as it would be in a step of its own, so drafts change how many come of a step and nothing
        else. What fails here ends this request, and no other.

        Args:
            logits: `[1 + drafts, vocab_size]`, after the last token and after each draft.
            drafts: guesses of the next tokens that the step has computed.
        """
        outputs: list[StepOutput] = []
        try:
            for row, draft in zip(logits, (*drafts, None), strict=True):
                outputs.append(self._choose(row))
                if outputs[-1].finish_reason is not None or outputs[-1].token_ids != (draft,):
                    break
            chosen = [*_token_ids(outputs)]
            self.sequence.drafts = self._speculate(chosen, len(drafts))
            self.sequence.spare = self._guess(chosen)
        except Exception as error:
            logger.exception("request %s ends with an error", self.request.id)
            outputs.append(failure("the output could not be continued", error))
        return outputs[0] if len(outputs) == 1 else _joined(outputs)

    def _choose(self, logits: NDArray[np.float32]) -> StepOutput:
        """The next token, by its logits `[vocab_size]`."""
        if not np.isfinite(logits).all():
            raise DecoderError(f"the decoder's logits for request {self.request.id} hold NaN or infinity")
        params = self.request.params
        token_id = self._sampler.choose(logits)
        self._sampler.record(token_id)
        self._left -= 1

        stop: str | int | None = None
        reason: FinishReason | None = None
        if token_id in params.stop_token_ids:  # its own text is not part of the output
            text, stop = self._text.finish()
            stop = token_id if stop is None else stop
            offset = self._text.offset
        else:
            text, stop = self._text.push(token_id)
            offset = self._text.offset
            if stop is None and not self._left:
                tail, stop = self._text.finish()
                text, reason = text + tail, "length"
        if stop is not None:
            reason = "stop"
        logprobs: tuple[TokenLogprobs, ...] = ()
        if params.logprobs is not None:
            logprobs = (token_logprobs(logits, token_id, params.logprobs, offset=offset),)
        return StepOutput(text=text, token_ids=(token_id,), logprobs=logprobs, finish_reason=reason, stop_reason=stop)

    def _speculate(self, chosen: Sequence[int], drafts: int) -> tuple[int, ...]:
        """Drafts for the next step: no more than leave a token to be chosen after the last, which is never computed."""
        if not self._most_drafts:
            return ()
        if self._speculation is None:
            self._speculation = Speculation(self.request.prompt_ids, self._most_drafts)
        self._speculation.observe(chosen, drafts)
        return self._speculation.propose(max(0, self._left - 1))

    def _guess(self, chosen: Sequence[int]) -> tuple[int, ...]:
        """A guess for the next step, likewise."""
        if not self._guesses:
            return ()
        if self._spare is None:
            self._spare = PromptLookup(self.request.prompt_ids)
        for token_id in chosen:
            self._spare.append(token_id)
        # It takes the place of a copy, so it asks for no evidence but a match.
        return self._spare.propose(1) if self._left > 1 else ()


def _joined(outputs: Sequence[StepOutput]) -> StepOutput:
    """Events of one step as one."""
    return replace(
        outputs[-1],
        text="".join(output.text for output in outputs),
        token_ids=tuple(_token_ids(outputs)),
        logprobs=tuple(entry for output in outputs for entry in output.logprobs),
    )


def _token_ids(outputs: Sequence[StepOutput]) -> Iterator[int]:
    return (token_id for output in outputs for token_id in output.token_ids)


def failure(what: str, error: BaseException) -> StepOutput:
    """The last event of a request that something went wrong with.

    Our own messages are written for clients; those of others may tell what is none of their business.
    """
    why = str(error) if isinstance(error, BentoKVError) else f"{type(error).__name__}; the log has the details"
    return StepOutput(finish_reason="error", error=f"{what}: {why}")

"""What the engine's thread does: one step after the other, and what is told of each."""

from __future__ import annotations

import logging
import operator
import time
from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from bento_kv.contract.decoder import Decoder
from bento_kv.contract.plan import StepPlan, StepRow
from bento_kv.engine.deadlines import DeadlineWatch
from bento_kv.engine.faults import each_alone
from bento_kv.engine.generation import Generation, failure
from bento_kv.engine.observer import EngineStats
from bento_kv.engine.request import StepOutput
from bento_kv.engine.scheduler import Scheduler
from bento_kv.engine.telemetry import Telemetry
from bento_kv.errors import DecoderError

logger = logging.getLogger(__name__)


class EngineCore:
    """Every request's state, and the step. It belongs to one thread.

    Args:
        decoder: the model.
        scheduler: who computes what.
        telemetry: told what happens.
        stats: the engine's books, to be told after each step.
        ended: called with the id of a request that ends, before the request is told so.

    Attributes:
        generations: the requests that have come and not ended, by id.
        running: how many have a slot.
        kv_tokens: positions of the KV cache that they have written. This one and `running` are as they are while or after
            the last step, and may be read from any thread.
    """

    def __init__(
        self,
        decoder: Decoder,
        scheduler: Scheduler,
        telemetry: Telemetry,
        *,
        stats: Callable[[], EngineStats],
        ended: Callable[[str], None],
    ) -> None:
        self.generations: dict[str, Generation] = {}
        self.running = 0
        self.kv_tokens = 0
        self._decoder = decoder
        self._scheduler = scheduler
        self._telemetry = telemetry
        self._stats = stats
        self._ended = ended
        self._deadline_watch = DeadlineWatch()

    def step(self) -> bool:
        """Compute one plan, and tell what came of it. False if there was nothing to compute."""
        self._expire()
        plan = self._scheduler.schedule()
        self._publish()
        if plan is None:
            return False
        for row in plan.rows:
            self._telemetry.admitted(self._in_slot(row.slot))
        try:
            logits = self._compute(plan)  # by row, [row.logits, vocab_size]
        except Exception:
            logger.exception("a step of %d requests failed; each is tried alone", len(plan.rows))
            plan, logits = self._salvage(plan)
        planned = [self._in_slot(row.slot) for row in plan.rows]
        outputs = [
            generation.advance(own, _drafts(row)) if row.logits else StepOutput()
            for generation, row, own in zip(planned, plan.rows, logits, strict=True)
        ]
        prompt_tokens = self._scheduler.update(plan, [output.token_ids for output in outputs])
        for generation, row, output in zip(planned, plan.rows, outputs, strict=True):
            self._telemetry.computed(generation, row)
            if row.logits:
                self._tell(generation, output)
        self._publish()
        self._telemetry.speculation(sum(row.drafts for row in plan.rows), _accepted(plan, outputs))
        self._telemetry.step(self._stats(), prompt_tokens, sum(len(output.token_ids) for output in outputs))
        return True

    def accept(self, generation: Generation) -> None:
        """Take a request in."""
        self.generations[generation.request.id] = generation
        self._deadline_watch.add(generation)
        self._scheduler.add(generation.sequence)
        self._telemetry.queued(generation)

    def abort(self, request_id: str) -> None:
        """End a request with finish reason `abort`, unless it has ended."""
        if generation := self.generations.get(request_id):
            self._tell(generation, StepOutput(finish_reason="abort"))

    def abort_all(self) -> None:
        """End all requests with finish reason `abort`."""
        for request_id in list(self.generations):
            self.abort(request_id)

    def fail(self, error: BaseException) -> None:
        """End all requests with finish reason `error`, whatever state the books are in."""
        output = failure("the engine failed", error)
        for generation in list(self.generations.values()):
            try:
                self._retire(generation, output)
            except Exception:
                logger.exception("the books of request %s cannot be closed", generation.request.id)
            self._emit(generation, output)

    def check_books(self) -> None:
        """Raise AssertionError unless the books agree with each other."""
        self._scheduler.check_books()
        assert len(self.generations) == len(self._scheduler.running) + len(self._scheduler.waiting)

    # -- computing ----------------------------------------------------------------------------------------------------

    def _compute(self, plan: StepPlan) -> Sequence[NDArray[np.float32]]:
        """Logits by row, `[row.logits, vocab_size]`."""
        logits = self._decoder.step(plan)
        ends = list(accumulate(row.logits for row in plan.rows))
        expected = (ends[-1], self._decoder.vocab_size)
        if logits.shape != expected:
            raise DecoderError(f"the decoder answered with logits of shape {logits.shape} instead of {expected}")
        return [logits[end - row.logits : end] for row, end in zip(plan.rows, ends, strict=True)]

    def _salvage(self, plan: StepPlan) -> tuple[StepPlan, Sequence[NDArray[np.float32]]]:
        """After a failure: end the requests whose rows fail alone too, and return the rest of the step."""
        salvage = each_alone(self._compute, plan)
        for slot, error in salvage.failed.items():
            logger.error("the step of request %s fails", self._in_slot(slot).request.id, exc_info=error)
            self._tell(self._in_slot(slot), failure("the decoder failed", error))
        return salvage.plan, salvage.logits

    def _in_slot(self, slot: int) -> Generation:
        return self.generations[self._scheduler.running[slot].id]

    # -- telling ------------------------------------------------------------------------------------------------------

    def _expire(self) -> None:
        """End the requests that are out of time."""
        for generation in self._deadline_watch.due(self.generations.values(), time.perf_counter()):
            self._tell(generation, generation.time_out())

    def _tell(self, generation: Generation, output: StepOutput) -> None:
        """Emit an event; if it is the last, close the books first, so that who hears of it finds the place free."""
        for _ in output.token_ids:
            self._telemetry.token(generation)
        if output.finish_reason is not None:
            self._retire(generation, output)
        if not self._emit(generation, output) and output.finish_reason is None:
            self._retire(generation, StepOutput(finish_reason="abort"))

    def _emit(self, generation: Generation, output: StepOutput) -> bool:
        try:
            generation.request.emit(output)
        except Exception:
            logger.exception("request %s could not be told of its output and ends", generation.request.id)
            return False
        return True

    def _retire(self, generation: Generation, last: StepOutput) -> None:
        """Forget a request and free its slot; `last` is its last event."""
        del self.generations[generation.request.id]
        self._ended(generation.request.id)
        # What a failed step left in the slot is nobody's to read.
        self._scheduler.finish(generation.sequence, keep=last.finish_reason != "error")
        self._publish()
        self._telemetry.finished(generation, last)

    def _publish(self) -> None:
        """Let other threads see the books."""
        self.running = len(self._scheduler.running)
        self.kv_tokens = self._scheduler.kv_tokens


def _drafts(row: StepRow) -> Sequence[int]:
    return row.tokens[len(row.tokens) - row.drafts :]


def _accepted(plan: StepPlan, outputs: Sequence[StepOutput]) -> int:
    """Drafts that were chosen: what was chosen after the first wrong one is compared with nothing."""
    rows = zip(plan.rows, outputs, strict=True)
    return sum(sum(map(operator.eq, _drafts(row), output.token_ids)) for row, output in rows if row.drafts)

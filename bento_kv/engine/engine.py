"""The engine: one thread that owns the decoder, the slots and every request's state.

Callers talk to it by messages, and it answers through each request's `emit`. A request that was accepted ends exactly
once, with exactly one finish reason, whatever happens.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from queue import Empty, SimpleQueue

import numpy as np
from numpy.typing import NDArray

from bento_kv.engine.config import EngineConfig
from bento_kv.engine.deadlines import Deadlines, DeadlineWatch
from bento_kv.engine.events import Recorder
from bento_kv.engine.faults import each_alone
from bento_kv.engine.generation import Generation, failure
from bento_kv.engine.limits import Limits
from bento_kv.engine.observer import EngineStats, NullObserver, Observer
from bento_kv.engine.request import Decoder, Detokenize, Request, StepOutput
from bento_kv.engine.scheduler import Scheduler
from bento_kv.engine.telemetry import Telemetry
from bento_kv.engine.watchdog import Watchdog
from bento_kv.errors import DecoderError, EngineClosedError, QueueFullError, RequestError
from bento_kv.plan import StepPlan

logger = logging.getLogger(__name__)


class Engine:
    """Continuous batching over one decoder.

    `submit`, `abort`, `close`, `stats` and the properties may be called from any thread; everything else belongs to the
    engine thread. Without `start`, whoever calls `step` is the engine thread.

    Args:
        decoder: the model; the engine is the only one to use it.
        detokenize: token ids to text.
        config: limits; the decoder's own slots and positions bound them.
        observer: told what happens, on the engine thread.
        recorders: told what happens to each request, on the engine thread.
    """

    def __init__(
        self,
        decoder: Decoder,
        detokenize: Detokenize,
        config: EngineConfig,
        observer: Observer | None = None,
        recorders: Sequence[Recorder] = (),
    ) -> None:
        slots = min(config.slots, decoder.slots)
        max_length = min(config.max_length or decoder.max_length, decoder.max_length)
        self._decoder = decoder
        self._detokenize = detokenize
        self._deadlines = Deadlines(max_queue_time=config.max_queue_seconds, max_time=config.max_seconds)
        self._limits = Limits(vocab_size=decoder.vocab_size, max_length=max_length, max_tokens=config.max_tokens)
        self._places = slots + config.max_queue
        self._telemetry = Telemetry(NullObserver() if observer is None else observer, recorders)
        self._scheduler = Scheduler(slots=slots, prefill_tokens=config.prefill_tokens)
        self._generations: dict[str, Generation] = {}
        self._deadline_watch = DeadlineWatch()
        self._watchdog = Watchdog(config.step_timeout)
        self._running = 0
        self._kv_tokens = 0
        self._thread: threading.Thread | None = None
        # A message is what the engine thread shall do; it is put under the lock, so that none comes after the last.
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._lock = threading.Lock()  # guards the three below
        self._alive_ids: set[str] = set()
        self._closing = False
        self._failed = False
        self._telemetry.opened(self.stats())

    # -- any thread ---------------------------------------------------------------------------------------------------

    @property
    def max_length(self) -> int:
        """Positions of the context, prompt and answer together."""
        return self._limits.max_length

    @property
    def places(self) -> int:
        """Requests that may be alive at once: those with a slot and those that wait for one."""
        return self._places

    @property
    def alive(self) -> bool:
        """The thread runs, has not failed, and does not hang in a step."""
        return self._thread is not None and self._thread.is_alive() and not self._failed and not self._watchdog.stalled

    @property
    def accepting(self) -> bool:
        """Alive, and not shutting down."""
        return self.alive and not self._closing

    def start(self) -> None:
        """Start the engine thread.

        Raises:
            RuntimeError: it was started before.
            EngineClosedError: the engine was closed.
        """
        with self._lock:
            if self._closing:
                raise EngineClosedError("the engine is closed; make a new one")
            self._launch()

    def submit(self, request: Request) -> None:
        """Accept a request: from now on it ends exactly once, through `request.emit`.

        Raises:
            RequestError: a field is out of range, or the id is taken by a request that is alive.
            ContextLengthError: prompt and answer do not fit in the context.
            QueueFullError: all slots and waiting places are taken; `retry_after` is when one may be free.
            EngineClosedError: the engine is shutting down, has failed or hangs.
        """
        max_tokens = self._limits.check(request.prompt_ids, request.params)
        deadlines = request.deadlines.within(self._deadlines)
        generation = Generation(request, max_tokens, self._detokenize, deadlines)
        with self._lock:
            self._check_open()
            if request.id in self._alive_ids:
                raise RequestError(f"a request with the id {request.id!r} is being served", param="request_id")
            if len(self._alive_ids) >= self._places:
                raise QueueFullError(
                    f"{self._scheduler.slots} requests are being served and {self._places - self._scheduler.slots} wait; "
                    "try again later",
                    retry_after=self._telemetry.service_seconds / self._scheduler.slots,
                )
            self._alive_ids.add(request.id)
            self._inbox.put(partial(self._accept, generation))

    def abort(self, request_id: str) -> None:
        """End a request with finish reason `abort`, soon. Ids that are not alive are ignored: it may just have ended."""
        with self._lock:
            if request_id in self._alive_ids:
                self._inbox.put(partial(self._abort, request_id))

    def close(self, *, drain: bool = True, timeout: float | None = None) -> bool:
        """Refuse new requests, end the old ones and join the thread. May be called again.

        A step that runs is waited for, for as long as a step may take, since nothing can interrupt it.

        Args:
            drain: let accepted requests finish; otherwise, and after the timeout, they end with finish reason `abort`.
            timeout: seconds to drain for; without limit if None.

        Returns:
            Whether the engine has stopped. If not, it hangs in a step, and its requests have no end.
        """
        with self._lock:
            self._closing = True
            self._inbox.put(self._notice if drain else self._abort_all)
            if self._thread is None:
                self._launch()  # never started, so nobody has yet ended what was accepted
        assert self._thread is not None
        if drain:
            self._thread.join(timeout)
            self._inbox.put(self._abort_all)
        self._thread.join(self._watchdog.patience)
        if self._thread.is_alive():
            logger.critical("the engine does not stop: a step hangs")
            return False
        self._telemetry.close()
        return True

    def stats(self) -> EngineStats:
        """The books, as they are while or after the last step."""
        running = self._running
        return EngineStats(
            running=running,
            waiting=max(0, len(self._alive_ids) - running),
            slots=self._scheduler.slots,
            kv_tokens_used=self._kv_tokens,
            kv_tokens_total=self._scheduler.slots * self._limits.max_length,
        )

    # -- the engine thread --------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Take the messages, compute one plan, and tell what came of it. False if there was nothing to compute."""
        self._take_messages()
        self._expire()
        plan = self._scheduler.schedule()
        self._publish()
        if plan is None:
            return False
        for row in plan.rows:
            self._telemetry.admitted(self._in_slot(row.slot))
        try:
            logits = self._compute(plan)  # by row, [vocab_size]
        except Exception:
            logger.exception("a step of %d requests failed; each is tried alone", len(plan.rows))
            plan, logits = self._salvage(plan)
        planned = [self._in_slot(row.slot) for row in plan.rows]
        outputs = [generation.advance(row) for generation, row in zip(planned, logits, strict=True)]
        prompt_tokens = self._scheduler.update(plan, [output.token_ids for output in outputs])
        for row, generation in zip(plan.rows, planned, strict=True):
            self._telemetry.computed(generation, row)
        for generation, output in zip(planned, outputs, strict=True):
            self._tell(generation, output)
        self._publish()
        self._telemetry.step(self.stats(), prompt_tokens, sum(len(output.token_ids) for output in outputs))
        return True

    def check_books(self) -> None:
        """Raise AssertionError unless the books agree with each other."""
        self._scheduler.check_books()
        assert len(self._generations) == len(self._scheduler.running) + len(self._scheduler.waiting)
        assert self._generations.keys() <= self._alive_ids

    def _check_open(self) -> None:
        if self._failed:
            raise EngineClosedError("the engine has failed; restart the service")
        if self._closing:
            raise EngineClosedError("the engine is shutting down; try another server")
        if self._watchdog.stalled:
            raise EngineClosedError(
                f"a step has been running for more than {self._watchdog.timeout:g} s; try again later"
            )

    def _launch(self) -> None:
        if self._thread is not None:
            raise RuntimeError("the engine was started before")
        self._thread = threading.Thread(target=self._run, name="bento_kv-engine", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while self._watched_step() or self._wait():
                pass
        except BaseException as error:
            logger.critical("the engine failed and serves no more", exc_info=error)
            self._fail(error)

    def _watched_step(self) -> bool:
        with self._watchdog:
            return self.step()

    def _wait(self) -> bool:
        """Sleep until a message comes. False if none can come that matters: closing, and nothing is left to do."""
        if self._closing and not self._alive_ids:
            return False
        self._inbox.get()()
        return True

    def _take_messages(self) -> None:
        try:
            while True:
                self._inbox.get_nowait()()
        except Empty:
            return

    def _compute(self, plan: StepPlan) -> Sequence[NDArray[np.float32]]:
        logits = self._decoder.step(plan)
        expected = (sum(row.logits for row in plan.rows), self._limits.vocab_size)
        if logits.shape != expected:
            raise DecoderError(f"the decoder answered with logits of shape {logits.shape} instead of {expected}")
        return list(logits)

    def _salvage(self, plan: StepPlan) -> tuple[StepPlan, Sequence[NDArray[np.float32]]]:
        """After a failure: end the requests whose rows fail alone too, and return the rest of the step."""
        salvage = each_alone(self._compute, plan)
        for slot, error in salvage.failed.items():
            logger.error("the step of request %s fails", self._in_slot(slot).request.id, exc_info=error)
            self._tell(self._in_slot(slot), failure("the decoder failed", error))
        return salvage.plan, salvage.logits

    def _in_slot(self, slot: int) -> Generation:
        return self._generations[self._scheduler.running[slot].id]

    def _accept(self, generation: Generation) -> None:
        self._generations[generation.request.id] = generation
        self._deadline_watch.add(generation)
        self._scheduler.add(generation.sequence)
        self._telemetry.queued(generation)

    def _expire(self) -> None:
        """End the requests that are out of time."""
        for generation in self._deadline_watch.due(self._generations.values(), time.perf_counter()):
            self._tell(generation, generation.time_out())

    def _abort(self, request_id: str) -> None:
        if generation := self._generations.get(request_id):
            self._tell(generation, StepOutput(finish_reason="abort"))

    def _abort_all(self) -> None:
        for request_id in list(self._generations):
            self._abort(request_id)

    def _notice(self) -> None:
        """A message without content: it wakes the thread, which then sees that the engine is closing."""

    def _fail(self, error: BaseException) -> None:
        """End everything, whatever state the books are in."""
        with self._lock:
            self._failed = True  # from here on nothing is accepted
        while not self._inbox.empty():
            try:
                self._inbox.get()()
            except Exception:
                logger.exception("a message is lost")
        output = failure("the engine failed", error)
        for generation in list(self._generations.values()):
            try:
                self._retire(generation, output)
            except Exception:
                logger.exception("the books of request %s cannot be closed", generation.request.id)
            self._emit(generation, output)

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
        del self._generations[generation.request.id]
        with self._lock:
            self._alive_ids.discard(generation.request.id)
        self._scheduler.finish(generation.sequence)
        self._publish()
        self._telemetry.finished(generation, last)

    def _publish(self) -> None:
        """Let other threads see the books."""
        self._running = len(self._scheduler.running)
        self._kv_tokens = self._scheduler.kv_tokens

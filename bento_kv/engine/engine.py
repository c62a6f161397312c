"""The engine: one thread that owns the decoder, the slots and every request's state.

Callers talk to it by messages, and it answers through each request's `emit`. A request that was accepted ends exactly
once, with exactly one finish reason, whatever happens. What the thread does is in `core`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from queue import Empty, SimpleQueue

from bento_kv.contract.decoder import Decoder
from bento_kv.engine.backlog import Backlogs
from bento_kv.engine.config import EngineConfig
from bento_kv.engine.core import EngineCore
from bento_kv.engine.deadlines import Deadlines
from bento_kv.engine.events import Recorder
from bento_kv.engine.generation import Generation
from bento_kv.engine.limits import RequestLimits
from bento_kv.engine.observer import EngineStats, NullObserver, Observer
from bento_kv.engine.places import Places
from bento_kv.engine.request import Detokenize, Request
from bento_kv.engine.scheduler import scheduler_for
from bento_kv.engine.telemetry import Telemetry
from bento_kv.engine.watchdog import Watchdog
from bento_kv.errors import EngineClosedError, RequestError

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
        self.backlogs = Backlogs()  # of those who read answers
        slots = min(config.slots, decoder.slots)
        max_length = min(config.max_length or decoder.max_length, decoder.max_length)
        kv_tokens = slots * max_length if config.kv_tokens is None else config.kv_tokens
        self._detokenize = detokenize
        self._deadlines = Deadlines(max_queue_time=config.max_queue_seconds, max_time=config.max_seconds)
        self._limits = RequestLimits(
            vocab_size=decoder.vocab_size,
            max_length=min(max_length, kv_tokens),
            max_tokens=config.max_tokens,
            memory_bound=kv_tokens < max_length,
            speculation=config.speculation,
        )
        self._places = Places(slots, slots + config.max_queue)
        self._scheduler = scheduler_for(
            decoder, config, slots=slots, kv_tokens=kv_tokens, max_length=self._limits.max_length
        )
        self._telemetry = Telemetry(
            NullObserver() if observer is None else observer, recorders, prefix_cache=self._scheduler.cache.reuse
        )
        self._core = EngineCore(decoder, self._scheduler, self._telemetry, stats=self.stats, ended=self._forget)
        self._watchdog = Watchdog(config.step_timeout)
        self._thread: threading.Thread | None = None
        # A message is what the engine thread shall do; it is put under the lock, so that none comes after the last.
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._lock = threading.Lock()  # guards the two below, and the places
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
        return self._places.total

    @property
    def places_for_one(self) -> int:
        """Of these, how many may be a client's."""
        return self._places.for_one

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
            QueueFullError: all slots and waiting places are taken, or all that its client may have; `retry_after` is when one may be free.
            EngineClosedError: the engine is shutting down, has failed or hangs.
        """
        self.submit_all([request])

    def submit_all(self, requests: Sequence[Request]) -> None:
        """Accept several requests, or none of them; the rest is as with `submit`."""
        generations = [self._generation(request) for request in requests]
        with self._lock:
            self._check_open()
            owners = {request.id: request.client for request in requests}
            if len(owners) < len(requests) or not owners.keys().isdisjoint(self._places.taken):
                taken = sorted(owners.keys() & self._places.taken) or sorted(owners)
                raise RequestError(f"a request with the id {taken[0]!r} is being served", param="request_id")
            self._places.take(owners, retry_after=self._telemetry.service_seconds / self._scheduler.slots)
            for generation in generations:
                self._inbox.put(partial(self._core.accept, generation))

    def abort(self, request_id: str) -> None:
        """End a request with finish reason `abort`, soon. Ids that are not alive are ignored: it may just have ended."""
        with self._lock:
            if request_id in self._places:
                self._inbox.put(partial(self._core.abort, request_id))

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
            self._inbox.put(self._notice if drain else self._core.abort_all)
            if self._thread is None:
                self._launch()  # never started, so nobody has yet ended what was accepted
        assert self._thread is not None
        if drain:
            self._thread.join(timeout)
            self._inbox.put(self._core.abort_all)
        self._thread.join(self._watchdog.patience)
        if self._thread.is_alive():
            logger.critical("the engine does not stop: a step hangs")
            return False
        self._telemetry.close()
        return True

    def stats(self) -> EngineStats:
        """The books, as they are while or after the last step."""
        running = self._core.running
        return EngineStats(
            running=running,
            waiting=max(0, len(self._places) - running),
            slots=self._scheduler.slots,
            kv_tokens_used=self._core.kv_tokens,
            kv_tokens_total=self._scheduler.cache.kv_tokens,
            kv_tokens_reserved=self._scheduler.cache.reserved,
            kv_tokens_cached=self._scheduler.cache.cached,
        )

    def _generation(self, request: Request) -> Generation:
        return Generation(
            request,
            self._limits.check(request.prompt_ids, request.params),
            self._detokenize,
            deadlines=request.deadlines.within(self._deadlines),
            speculation=self._limits.speculation,
            spare_guess=self._scheduler.spare_drafts,
        )

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

    # -- the engine thread --------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Take the messages, compute one plan, and tell what came of it. False if there was nothing to compute."""
        self._take_messages()
        return self._core.step()

    def check_books(self) -> None:
        """Raise AssertionError unless the books agree with each other."""
        self._core.check_books()
        assert self._core.generations.keys() <= self._places.taken

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
        if self._closing and not len(self._places):
            return False
        self._inbox.get()()
        return True

    def _take_messages(self) -> None:
        try:
            while True:
                self._inbox.get_nowait()()
        except Empty:
            return

    def _forget(self, request_id: str) -> None:
        with self._lock:
            self._places.give_back(request_id)

    def _notice(self) -> None:
        """A message without content: it wakes the thread, which then sees that the engine is closing."""

    def _fail(self, error: BaseException) -> None:
        """End everything, whatever state it is in."""
        with self._lock:
            self._failed = True  # from here on nothing is accepted
        while not self._inbox.empty():
            try:
                self._inbox.get()()
            except Exception:
                logger.exception("a message is lost")
        self._core.fail(error)

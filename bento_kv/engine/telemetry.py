"""What the observer and the recorders hear of the requests, and how long they take."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

from bento_kv.contract.plan import StepRow
from bento_kv.engine.events import Event, EventKind, Recorder
from bento_kv.engine.generation import Generation
from bento_kv.engine.observer import EngineStats, Observer
from bento_kv.engine.request import StepOutput

logger = logging.getLogger(__name__)

P = ParamSpec("P")


class Telemetry:
    """Measures, and tells an observer and recorders, whose failures are their own.

    Args:
        observer: who is told numbers.
        recorders: who are told of single requests.
        prefix_cache: there is one.

    Attributes:
        service_seconds: how long a request keeps its slot, a moving average; a guess until the first one has ended.
    """

    def __init__(self, observer: Observer, recorders: Sequence[Recorder] = (), *, prefix_cache: bool) -> None:
        self.service_seconds = 1.0
        self._observer = observer
        self._recorders = tuple(recorders)
        self._prefix_cache = prefix_cache

    def opened(self, stats: EngineStats) -> None:
        self._tell(self._observer.opened, stats)

    def queued(self, generation: Generation) -> None:
        self._tell(self._observer.queued)
        if self._recorders:
            self._record("queued", generation, generation.arrived, prompt_tokens=generation.sequence.prompt_length)

    def admitted(self, generation: Generation) -> None:
        """A step with the request begins; only its first counts."""
        if generation.admitted is None:
            generation.admitted = time.perf_counter()
            self._tell(self._observer.admitted, generation.admitted - generation.arrived)
            if self._prefix_cache:
                self._tell(self._observer.prefix_cache, generation.sequence.prompt_length, generation.sequence.hit)
            if self._recorders:
                self._record("admitted", generation, generation.admitted, slot=generation.sequence.slot)

    def computed(self, generation: Generation, row: StepRow) -> None:
        """A step with the request went well; parts of prompts are of interest, single tokens are not."""
        if self._recorders and not row.decodes:
            tokens = len(row.tokens)
            self._record("chunk", generation, time.perf_counter(), tokens=tokens, computed=row.start + tokens)

    def token(self, generation: Generation) -> None:
        before, generation.last_token = generation.last_token, time.perf_counter()
        if before is None:
            self._tell(self._observer.first_token, generation.last_token - generation.arrived)
            if self._recorders:
                self._record("first_token", generation, generation.last_token)
        else:
            self._tell(self._observer.next_token, generation.last_token - before)

    def finished(self, generation: Generation, last: StepOutput) -> None:
        """The request ended, with this as its last event."""
        assert last.finish_reason is not None  # it is the last
        now = time.perf_counter()
        if generation.admitted is not None:
            self.service_seconds += (now - generation.admitted - self.service_seconds) / 8
        sequence = generation.sequence
        self._tell(
            self._observer.finished,
            last.finish_reason,
            now - generation.arrived,
            sequence.prompt_length,
            sequence.generated,
        )
        if last.timeout is not None:
            self._tell(self._observer.timed_out, last.timeout)
        if self._recorders:
            told = {"timeout": last.timeout, "error": last.error}
            given = {name: value for name, value in told.items() if value is not None}
            self._record("finished", generation, now, reason=last.finish_reason, generated=sequence.generated, **given)

    def step(self, stats: EngineStats, prompt_tokens: int, generated_tokens: int) -> None:
        self._tell(self._observer.step, stats, prompt_tokens, generated_tokens)

    def speculation(self, draft_tokens: int, accepted_tokens: int) -> None:
        """A step checked drafts, of all its requests together; without drafts there is nothing to tell."""
        if draft_tokens:
            self._tell(self._observer.speculation, draft_tokens, accepted_tokens)

    def close(self) -> None:
        """Nothing will follow."""
        for recorder in self._recorders:
            self._tell(recorder.close)

    def _record(self, kind: EventKind, generation: Generation, at: float, **details: Any) -> None:
        event = Event(kind=kind, request=generation.request, at=at, details=details)
        for recorder in self._recorders:
            self._tell(recorder.record, event)

    def _tell(self, hear: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            hear(*args, **kwargs)
        except Exception:
            logger.exception("an observer failed")

"""What the observer hears of the requests, and how long they take."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import ParamSpec

from bento_kv.engine.generation import Generation
from bento_kv.engine.observer import EngineStats, Observer
from bento_kv.engine.request import FinishReason

logger = logging.getLogger(__name__)

P = ParamSpec("P")


class Telemetry:
    """Measures, and tells an observer, whose failures are its own.

    Args:
        observer: who is told.
        prefix_cache: there is one.

    Attributes:
        service_seconds: how long a request keeps its slot, a moving average; a guess until the first one has ended.
    """

    def __init__(self, observer: Observer, *, prefix_cache: bool) -> None:
        self.service_seconds = 1.0
        self._observer = observer
        self._prefix_cache = prefix_cache

    def queued(self) -> None:
        self._tell(self._observer.queued)

    def admitted(self, generation: Generation) -> None:
        """A step with the request begins; only its first counts."""
        if generation.admitted is None:
            generation.admitted = time.perf_counter()
            self._tell(self._observer.admitted, generation.admitted - generation.arrived)
            if self._prefix_cache:
                self._tell(self._observer.prefix_cache, generation.sequence.prompt_length, generation.sequence.hit)

    def token(self, generation: Generation) -> None:
        before, generation.last_token = generation.last_token, time.perf_counter()
        if before is None:
            self._tell(self._observer.first_token, generation.last_token - generation.arrived)
        else:
            self._tell(self._observer.next_token, generation.last_token - before)

    def finished(self, generation: Generation, reason: FinishReason) -> None:
        now = time.perf_counter()
        if generation.admitted is not None:
            self.service_seconds += (now - generation.admitted - self.service_seconds) / 8
        sequence = generation.sequence
        self._tell(
            self._observer.finished, reason, now - generation.arrived, sequence.prompt_length, sequence.generated
        )

    def step(self, stats: EngineStats, prompt_tokens: int, generated_tokens: int) -> None:
        self._tell(self._observer.step, stats, prompt_tokens, generated_tokens)

    def _tell(self, hear: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            hear(*args, **kwargs)
        except Exception:
            logger.exception("the observer failed")

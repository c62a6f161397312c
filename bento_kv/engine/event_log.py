"""An event log: a line of JSON for each event of each request."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from queue import Empty, Full, Queue
from typing import Any

from bento_kv.engine.events import Event

logger = logging.getLogger(__name__)

MAX_PENDING = 10_000  # events that wait for a slow disk; more are lost


class EventLog:
    """A `Recorder` that appends to a file, from a thread of its own: a disk that is slow or full delays and ends nothing.

    A line has `time` (Unix seconds), `event`, `request` (the id of the answer, with the number of the choice), `worker` (the
    process), and what the event has to say, see `Event`. What cannot be written is lost, and the log says so, once until it can be
    written again. Several processes may write to one file.

    Args:
        path: created if need be.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._clock = time.time() - time.perf_counter()  # from the engine's clock to Unix time
        self._pending: Queue[Event | None] = Queue(MAX_PENDING)
        self._lost = 0
        self._failing = False
        self._torn = False  # the last write ended within a line
        self._thread = threading.Thread(target=self._run, name="bento_kv-event-log", daemon=True)
        self._thread.start()

    def record(self, event: Event) -> None:
        """Take an event, or lose it if too many wait."""
        try:
            self._pending.put_nowait(event)
        except Full:
            self._lost += 1

    def close(self, *, patience: float = 5.0) -> None:
        """Write what waits, for at most so many seconds, and end."""
        try:
            self._pending.put(None, timeout=patience)
        except Full:
            logger.error("the event log %s is not written to its end: the disk is too slow", self._path)
            return
        self._thread.join(patience)

    def _run(self) -> None:
        ended = False
        while not ended:
            events = [self._pending.get()]
            with suppress(Empty):
                while len(events) < MAX_PENDING:
                    events.append(self._pending.get_nowait())
            ended = None in events
            self._write([event for event in events if event is not None])
        os.close(self._file)

    def _write(self, events: Iterable[Event]) -> None:
        lines = "".join(json.dumps(self._entry(event), ensure_ascii=False) + "\n" for event in events)
        if not lines:
            return
        data = (b"\n" if self._torn else b"") + lines.encode("utf-8", errors="replace")
        try:
            while data:
                written = os.write(self._file, data)
                self._torn = not data[:written].endswith(b"\n")
                data = data[written:]
        except OSError as error:
            if not self._failing:
                logger.error("the event log %s cannot be written, and events are lost: %s", self._path, error.strerror)
            self._failing = True
            return
        if self._failing or self._lost:
            logger.warning("the event log %s is written again; what happened in the meantime is lost", self._path)
            self._failing, self._lost = False, 0

    def _entry(self, event: Event) -> dict[str, Any]:
        return {
            "time": round(self._clock + event.at, 6),
            "event": event.kind,
            "request": event.request.id,
            "worker": os.getpid(),
            **event.details,
        }

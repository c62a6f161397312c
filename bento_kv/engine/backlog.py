"""What answers wait to be read, and how much of it there may be: of a request, and of all requests of a client."""

from __future__ import annotations

import threading
from collections import Counter

from bento_kv.engine.request import StepOutput

UNREAD_LIMIT = 32_768  # of about a hundred bytes each, as `weight` counts them
CLIENT_LIMIT = 4 * UNREAD_LIMIT
_SHARE = 8  # a client that has too much in all loses the requests that have more than such a part of a request's limit


class Backlogs:
    """The backlogs of an engine's requests, by client. May be used by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of_client: Counter[str | None] = Counter()

    def of(self, client: str | None) -> Backlog:
        """One for a new request of that client."""
        return Backlog(self, client)

    def count(self, client: str | None, weight: int) -> int:
        """Add to what waits for a client, and say how much it is then."""
        with self._lock:
            self._of_client[client] += weight
            total = self._of_client[client]
            if not total:
                del self._of_client[client]
            return total

    @property
    def clients(self) -> int:
        """For whom something waits."""
        return len(self._of_client)


class Backlog:
    """What waits to be read of one request's answer, however many choices it has. It belongs to one event loop."""

    def __init__(self, books: Backlogs, client: str | None) -> None:
        self._books = books
        self._client = client
        self._size = 0

    def add(self, output: StepOutput) -> bool:
        """Count an event that waits from now on; False if that is more than may wait. Requests of nobody in particular do
        not count together."""
        self._size += weight(output)
        total = self._books.count(self._client, weight(output))
        shared = self._client is not None and total > CLIENT_LIMIT
        return self._size <= (UNREAD_LIMIT // _SHARE if shared else UNREAD_LIMIT)

    def remove(self, output: StepOutput) -> None:
        """It waits no more."""
        self._size -= weight(output)
        self._books.count(self._client, -weight(output))


def weight(output: StepOutput) -> int:
    """What an event takes in memory, in about a hundred bytes."""
    return 4 + sum(1 + len(entry.top) for entry in output.logprobs)

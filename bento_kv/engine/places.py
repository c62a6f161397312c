"""Who may wait: places by client, so that one client's requests leave some to others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from bento_kv.errors import QueueFullError

_SHARE = 3  # times the places that are left


class Places:
    """The places of an engine, of which slots have some and the queue the rest.

    A client may have as many as there are slots, and more as long as it has no more than three times those that are left and
    one: three quarters if it is alone, three sevenths if there are two. So there is a place for who comes next. (Dynamic thresholds, as
    switches share their buffers: Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998.) Requests of nobody in
    particular, as in a program of one's own, may take all.

    Args:
        slots: of these, which a client may have in any case.
        total: places.
    """

    def __init__(self, slots: int, total: int) -> None:
        self.total = total
        self._slots = slots
        self._owners: dict[str, str | None] = {}  # client by request
        self._held: Counter[str | None] = Counter()

    @property
    def for_one(self) -> int:
        """That a client may have if it is alone."""
        return max(min(self._slots, self.total), (self.total + 1) * _SHARE // (_SHARE + 1))

    def __len__(self) -> int:
        return len(self._owners)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._owners

    @property
    def taken(self) -> set[str]:
        """Ids of requests."""
        return set(self._owners)

    def take(self, owners: Mapping[str, str | None], *, retry_after: float) -> None:
        """Take a place for each request, by its id and with its client, or none.

        Raises:
            QueueFullError: there are not so many, or not for these clients.
        """
        left = self.total - len(self) - len(owners)
        if left < 0:
            raise QueueFullError(
                f"{self._slots} requests are being served and {self.total - self._slots} wait; try again later",
                retry_after=retry_after,
            )
        for client, asked in Counter(owners.values()).items():
            held = self._held[client] + asked
            if client is not None and held > max(self._slots, _SHARE * (left + 1)):
                raise QueueFullError(
                    f"{self._held[client]} requests of yours are here, and the places that are left are for others; try "
                    "again later",
                    retry_after=retry_after,
                )
        self._owners |= owners
        self._held.update(owners.values())

    def give_back(self, request_id: str) -> None:
        """The request has ended, if it had a place."""
        if request_id in self._owners:
            client = self._owners.pop(request_id)
            self._held[client] -= 1
            if not self._held[client]:
                del self._held[client]

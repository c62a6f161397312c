"""BentoML's supervisor, the process that starts workers and passes signals on to them, by circus."""

from __future__ import annotations

import signal

import circus.controller
from circus.sighandler import SysHandler


class _Insistent(SysHandler):  # type: ignore[misc] # circus has no types
    """Tells the workers of a second signal, by SIGINT, at which they end at once. circus drops it: it is stopping already."""

    _stopping = False

    def quit(self) -> None:
        if not self._stopping:
            self._stopping = True
            super().quit()
            return
        for watcher in self.controller.arbiter.iter_watchers():
            for process in list(watcher.processes.values()):
                process.send_signal(signal.SIGINT)


def pass_second_signal_on() -> None:
    """Have the supervisor that this process becomes do so. To be called before it starts."""
    circus.controller.SysHandler = _Insistent

"""How long callers wait for room: the back-pressure that a sender feels."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class BlockedTime:
    """Waits on a condition, and counts the seconds in which at least one caller waited.

    Methods are called with the condition's lock held.
    """

    def __init__(self, condition: threading.Condition) -> None:
        self._condition = condition
        self._waiting = 0
        self._since = 0.0
        self._before = 0.0

    @property
    def current(self) -> float | None:
        """Seconds of the present wait; None if nobody waits."""
        return time.monotonic() - self._since if self._waiting else None

    @property
    def seconds(self) -> float:
        """Ever, the present wait included."""
        return self._before + (self.current or 0.0)

    def wait_for(self, predicate: Callable[[], bool], deadline: float | None) -> None:
        """Return when ``predicate`` holds, or at the deadline (of ``time.monotonic``)."""
        now = time.monotonic()
        if not self._waiting:
            self._since = now
        self._waiting += 1
        try:
            self._condition.wait_for(predicate, None if deadline is None else max(0.0, deadline - now))
        finally:
            self._before = self.seconds if self._waiting == 1 else self._before
            self._waiting -= 1

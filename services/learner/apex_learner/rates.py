"""How fast the run goes: updates and frames per second, and the share of time spent waiting for batches."""

from __future__ import annotations

import time
from collections import deque
from typing import NamedTuple

#: Rates are means over this many seconds.
WINDOW_SECONDS = 10.0


class _Point(NamedTuple):
    moment: float
    updates: int
    frames: int
    wait_seconds: float


class Rates:
    """Rates over the last ten seconds. For the trainer's thread."""

    def __init__(self) -> None:
        self._points: deque[_Point] = deque()
        self.total_wait_seconds = 0.0
        self.total_update_seconds = 0.0
        self._durations: list[float] = []

    def waited(self, seconds: float) -> None:
        self.total_wait_seconds += seconds

    def updated(self, seconds: float) -> None:
        self.total_update_seconds += seconds
        self._durations.append(seconds)

    def take_durations(self) -> list[float]:
        """Seconds of each update since the last call."""
        taken, self._durations = self._durations, []
        return taken

    def observe(self, updates: int, frames: int) -> None:
        """Take in the run's counters as they are now."""
        now = time.monotonic()
        self._points.append(_Point(now, updates, frames, self.total_wait_seconds))
        while len(self._points) > 2 and now - self._points[1].moment > WINDOW_SECONDS:
            self._points.popleft()

    @property
    def updates_per_second(self) -> float:
        return self._rate(1)

    @property
    def frames_per_second(self) -> float:
        return self._rate(2)

    @property
    def wait_ratio(self) -> float:
        """Share of the window in which the trainer waited for a batch."""
        return min(1.0, self._rate(3))

    def _rate(self, field: int) -> float:
        if len(self._points) < 2:
            return 0.0
        first, last = self._points[0], self._points[-1]
        seconds = last.moment - first.moment
        return max(0.0, float(last[field] - first[field]) / seconds) if seconds > 0 else 0.0

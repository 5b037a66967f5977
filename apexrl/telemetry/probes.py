"""What a service answers to the cluster's probes: whether it lives, and whether it is ready for work."""

from __future__ import annotations

import time
from collections.abc import Callable

#: A main loop that has not turned for this long hangs. The longest honest turn compiles a network.
PATIENCE_SECONDS = 300.0


class Probes:
    """State of one service, told by its main loop and read by the metrics server's threads."""

    def __init__(self, patience_seconds: float = PATIENCE_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience_seconds = patience_seconds
        self._clock = clock
        self._last_beat = clock()
        self.ready = False
        """Whether the service does what it is there for."""

    def beat(self) -> None:
        """The main loop has turned, be it only to wait."""
        self._last_beat = self._clock()

    @property
    def alive(self) -> bool:
        """Whether the main loop has turned lately."""
        return self._clock() - self._last_beat <= self._patience_seconds

"""Which of several equal peers to ask."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

#: A peer that failed is asked again this long afterwards, give or take half, so that a fleet returns little by little.
HOME_RETRY_SECONDS = 60.0


class Failover:
    """Keeps to the first address while that answers, turns to the next when it does not, and returns in time.

    Without the return all clients of a relay that was restarted once would burden its neighbour for ever.

    Args:
        addresses: HOST:PORT, in the order of preference; at least one.
        home_retry_seconds: mean time until the first address is asked again.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        home_retry_seconds: float = HOME_RETRY_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not addresses:
            raise ValueError("addresses is empty, must hold at least one HOST:PORT")
        self._addresses = tuple(addresses)
        self._home_retry_seconds = home_retry_seconds
        self._clock = clock
        self._random = random.Random()
        self._index = 0
        self._home_due = 0.0

    def choose(self) -> str:
        """The address to ask now."""
        if self._index and self._clock() >= self._home_due:
            self._index = 0
        return self._addresses[self._index]

    def failed(self) -> bool:
        """The chosen one did not answer or refused: the next is due. Returns whether that was the last of a round."""
        if self._index == 0:
            self._home_due = self._clock() + self._home_retry_seconds * self._random.uniform(0.5, 1.5)
        self._index = (self._index + 1) % len(self._addresses)
        return self._index == 0

"""Sending recorded chunks at a given rate: many streams, paced by one thread."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from apex_actor.recording import Burst
from apexrl.transport.errors import Closed
from apexrl.types import Chunk

#: A stream without room is tried again after this time.
RETRY_SECONDS = 0.1
#: A stream that is this late does not catch up: so much at once would be a burst that no actor makes.
LONGEST_LAG_SECONDS = 1.0
#: The pacing thread looks this often whether it shall end.
_STOP_POLL_SECONDS = 0.1


class Put(Protocol):
    """Takes chunks without waiting and says how many; see :meth:`apexrl.transport.insert_fleet.InsertFleet.put`."""

    def __call__(self, chunks: Sequence[Chunk], timeout: float | None = None) -> int: ...


class Paced(Protocol):
    """Something that has to be done again and again."""

    def turn(self, now: float) -> float:
        """Do what is due at ``now``, in the pacer's seconds, without waiting; returns when to come again."""
        ...


class PacedStream:
    """One stream of recorded bursts at a steady rate.

    While the stream takes nothing it is behind like an actor whose insert waits: what it could not play meanwhile is
    not made up for.

    Args:
        put: where the chunks go.
        bursts: without end.
        items_per_second: transitions per second.
        start: when the first burst is due, in the pacer's seconds.
    """

    def __init__(self, put: Put, bursts: Iterator[Burst], items_per_second: float, start: float) -> None:
        self._put = put
        self._bursts = bursts
        self._items_per_second = items_per_second
        self._rest: list[Chunk] = []
        self._interval = 0.0
        self._blocked_since: float | None = None
        self._blocked_before = 0.0
        self.due = start
        """When to come again."""
        self.sent_items = 0
        """Transitions handed to the stream."""
        self.sent_bytes = 0
        """Encoded bytes of their chunks."""
        self.late_seconds = 0.0
        """Time that was skipped because nobody came when it was due."""

    def blocked_seconds(self, now: float) -> float:
        """Seconds in which the stream took nothing, ever, the current wait included."""
        return self._blocked_before + (0.0 if self._blocked_since is None else now - self._blocked_since)

    def turn(self, now: float) -> float:
        """See :class:`Paced`."""
        if now < self.due:
            return self.due
        if not self._rest:
            burst = next(self._bursts)
            self._rest = list(burst.chunks)
            self._interval = burst.items / self._items_per_second
            if now - self.due > LONGEST_LAG_SECONDS:
                self.late_seconds += now - self.due
                self.due = now
        taken = self._put(self._rest, timeout=0.0)
        self.sent_items += sum(chunk.num_items for chunk in self._rest[:taken])
        self.sent_bytes += sum(chunk.num_bytes for chunk in self._rest[:taken])
        del self._rest[:taken]
        if self._rest:
            if self._blocked_since is None:
                self._blocked_since = now
            self.due = now + RETRY_SECONDS
            return self.due
        if self._blocked_since is not None:
            self._blocked_before += now - self._blocked_since
            self._blocked_since = None
            self.due = now
        self.due += self._interval
        return self.due


class Pacer:
    """One thread that gives all of ``paced`` their turns, in a time of its own that stands still in a pause.

    Paused at first.

    Args:
        paced: whose ``turn`` is called when it is due; each the first time at 0.
        clock: monotonic seconds.
    """

    def __init__(self, paced: Sequence[Paced], clock: Callable[[], float] = time.monotonic) -> None:
        self._paced = paced
        self._clock = clock
        self._lock = threading.Lock()
        self._before = 0.0
        self._since: float | None = None
        self._running = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pacer", daemon=True)
        self._thread.start()

    @property
    def now(self) -> float:
        """Seconds that this has run, without pauses."""
        with self._lock:
            return self._before + (0.0 if self._since is None else self._clock() - self._since)

    def resume(self) -> None:
        """Give turns from now on."""
        with self._lock:
            self._since = self._clock() if self._since is None else self._since
        self._running.set()

    def pause(self) -> None:
        """Give no turns until :meth:`resume`."""
        self._running.clear()
        now = self.now
        with self._lock:
            self._before, self._since = now, None

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._running.set()
        self._thread.join()

    def _run(self) -> None:
        queue = [(0.0, number) for number in range(len(self._paced))]
        while not self._stop.is_set() and queue:
            self._running.wait()
            due, number = queue[0]
            now = self.now
            if due > now:
                self._stop.wait(min(due - now, _STOP_POLL_SECONDS))
                continue
            try:
                heapq.heapreplace(queue, (self._paced[number].turn(now), number))
            except Closed:
                heapq.heappop(queue)

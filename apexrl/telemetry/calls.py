"""Counts of the gRPC calls that a service answers.

They are plain numbers that can be sent to another process: the learner's server lives in a child, and the learner
exports its calls.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any

from apexrl.telemetry.metric_table import METRICS

#: Upper bounds of durations, in seconds.
BOUNDS = next(metric for metric in METRICS if metric.name == "apex_grpc_server_handling_seconds").buckets

#: What :meth:`CallCounts.snapshot` gives: method -> its counts, as JSON has them.
Snapshot = dict[str, dict[str, Any]]


@dataclass
class _Method:
    in_flight: int = 0
    handled: dict[str, int] = field(default_factory=dict)
    """Calls that ended, by the name of their status."""
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    """Calls by duration: up to each upper bound, and above the last."""
    seconds: float = 0.0


class CallCounts:
    """Counts calls by method; a :class:`~apexrl.transport.handlers.CallObserver`. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._methods: dict[str, _Method] = {}

    def started(self, method: str) -> None:
        """A call has come."""
        with self._lock:
            self._methods.setdefault(method, _Method()).in_flight += 1

    def ended(self, method: str, code: str, seconds: float | None) -> None:
        """A call that had come is over; None for its time = not timed."""
        with self._lock:
            counts = self._methods[method]
            counts.in_flight -= 1
            counts.handled[code] = counts.handled.get(code, 0) + 1
            if seconds is not None:
                counts.buckets[bisect_left(BOUNDS, seconds)] += 1
                counts.seconds += seconds

    def snapshot(self) -> Snapshot:
        """The counts as they are now."""
        with self._lock:
            return {
                method: {
                    "in_flight": counts.in_flight,
                    "handled": dict(counts.handled),
                    "buckets": list(counts.buckets),
                    "seconds": counts.seconds,
                }
                for method, counts in self._methods.items()
            }

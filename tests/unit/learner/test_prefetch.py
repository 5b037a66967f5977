"""When the thread that keeps batches ready takes its turns."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from apex_learner import prefetch
from apexrl.transport.sample_client import StreamReply


class Assembler:
    """Every reply completes four batches, and requests are of four."""

    batches_per_request = 4

    def __init__(self) -> None:
        self.planned = threading.Semaphore(0)

    def apply(self, shard: int, result: Any, boot: bytes) -> list[int]:
        return [1, 2, 3, 4]

    def lost(self, shard: int) -> None:
        """Nothing was asked for."""

    def plan(self, ready: int) -> list[Any]:
        self.planned.release()
        return []


class Client:
    """A stream with one reply on it."""

    info = object()

    def __init__(self) -> None:
        self.events = [StreamReply(0, SimpleNamespace())]  # type: ignore[arg-type]

    def next_event(self, timeout: float) -> StreamReply | None:
        return self.events.pop() if self.events else None

    def report(self, table: str) -> None:
        return None


def test_a_learner_that_has_used_up_a_request_brings_the_next_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "TURN_SECONDS", 600.0)
    assembler, wake = Assembler(), threading.Event()
    limiter = SimpleNamespace(insert_limits=lambda: [None], waiting=lambda: None)
    prefetcher = prefetch.Prefetcher(
        [Client()],  # type: ignore[list-item]
        "replay",
        assembler,  # type: ignore[arg-type]
        limiter,  # type: ignore[arg-type]
        wake,
        on_totals=lambda shard, totals, boot: None,
        on_latency=lambda shard, seconds: None,
    )
    prefetcher._links[0].requested.append(0.0)
    try:
        wake.set()
        assert assembler.planned.acquire(timeout=30)
        assert [prefetcher.next(30) for _ in range(3)] == [1, 2, 3]
        assert not assembler.planned.acquire(timeout=0.2)
        assert prefetcher.next(30) == 4  # type: ignore[comparison-overlap]
        assert assembler.planned.acquire(timeout=30)
    finally:
        prefetcher.stop()

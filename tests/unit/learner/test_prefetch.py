"""When the thread that keeps batches ready takes its turns, and what it does with batches that come back."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from apex_learner import prefetch
from apexrl.transport.sample_client import StreamReply


class Assembler:
    """Every reply completes four batches, and requests are of four."""

    batches_per_request = 4

    def __init__(self) -> None:
        self.planned = threading.Semaphore(0)
        self.ready: list[int] = []
        self.free: list[Any] = []
        self.ring = SimpleNamespace(release=self.free.append)

    def apply(self, shard: int, result: Any, boot: bytes) -> list[int]:
        return [1, 2, 3, 4]

    def lost(self, shard: int) -> None:
        """Nothing was asked for."""

    def plan(self, ready: int) -> list[Any]:
        self.ready.append(ready)
        self.planned.release()
        return []


class Client:
    """A stream with one reply on it, or none. Keeps the priorities that it is given."""

    info = object()

    def __init__(self, replies: int = 1) -> None:
        self.events = [StreamReply(0, SimpleNamespace())] * replies  # type: ignore[arg-type]
        self.sent: list[tuple[str, list[int], list[float]]] = []

    def next_event(self, timeout: float) -> StreamReply | None:
        return self.events.pop() if self.events else None

    def report(self, table: str) -> None:
        return None

    def update_priorities(self, table: str, keys: Any, priorities: Any) -> None:
        self.sent.append((table, keys.tolist(), priorities.tolist()))


def make_prefetcher(clients: list[Client], assembler: Assembler, wake: threading.Event) -> prefetch.Prefetcher:
    return prefetch.Prefetcher(
        clients,  # type: ignore[arg-type]
        "replay",
        assembler,  # type: ignore[arg-type]
        SimpleNamespace(insert_limits=lambda: [None] * len(clients), waiting=lambda: None),  # type: ignore[arg-type]
        wake,
        on_totals=lambda shard, totals, boot: None,
        on_latency=lambda shard, seconds: None,
    )


def make_batch(keys: list[int], shards: list[int]) -> Any:
    return SimpleNamespace(keys=np.array(keys, np.uint64), shards=np.array(shards, np.uint16))


def test_a_learner_that_has_used_up_a_request_brings_the_next_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "TURN_SECONDS", 600.0)
    assembler, wake = Assembler(), threading.Event()
    prefetcher = make_prefetcher([Client()], assembler, wake)
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


def test_priorities_of_all_batches_go_to_their_shards_at_once_and_the_batches_are_freed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prefetch, "TURN_SECONDS", 600.0)
    assembler, wake, clients = Assembler(), threading.Event(), [Client(replies=0), Client(replies=0)]
    prefetcher = make_prefetcher(clients, assembler, wake)
    batches = [make_batch([10, 11, 12], [0, 1, 1]), make_batch([20, 21, 22], [1, 0, 1]), make_batch([30], [0])]
    try:
        prefetcher.learned(batches[0], np.array([1, 2, 3], np.float32))
        prefetcher.learned(batches[1], np.array([4, 5, 6], np.float32))
        prefetcher.learned(batches[2], None)
        assert assembler.free == []
        wake.set()
        assert assembler.planned.acquire(timeout=30)
    finally:
        prefetcher.stop()
    assert clients[0].sent == [("replay", [10, 21], [1.0, 5.0])]
    assert clients[1].sent == [("replay", [11, 12, 20, 22], [2.0, 3.0, 4.0, 6.0])]
    assert assembler.free == batches


def test_a_batch_learned_from_while_buffers_are_freed_still_counts_as_ready() -> None:
    """Else more would be asked for than there are buffers, and nobody could free another."""
    assembler, wake = Assembler(), threading.Event()
    prefetcher = make_prefetcher([Client(replies=0)], assembler, wake)
    prefetcher.stop()
    batch = make_batch([10], [0])
    prefetcher._ready.put(batch)

    def release(freed: Any) -> None:
        prefetcher.learned(prefetcher.next(0.0), None)  # type: ignore[arg-type]
        assembler.free.append(freed)

    assembler.ring = SimpleNamespace(release=release)
    first = make_batch([20], [0])
    prefetcher.learned(first, None)
    prefetcher._plan()
    assert assembler.ready[-1] == 1
    assert assembler.free == [first]

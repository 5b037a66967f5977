"""The process's loop and the options of channels and servers."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
import time
from pathlib import Path

import pytest
from grpc._cython import cygrpc

from apexrl.transport.channel import (
    LEARNER_LIMITS,
    REPLAY_LIMITS,
    Backoff,
    MessageLimits,
    channel_options,
    server_options,
)
from apexrl.transport.io_thread import io_thread


async def add(a: int, b: int) -> int:
    await asyncio.sleep(0)
    return a + b


def child(results: multiprocessing.queues.Queue[int]) -> None:  # type: ignore[type-arg]
    results.put(io_thread().run(add(20, 3)))


def test_there_is_one_loop_per_process_and_it_runs_coroutines() -> None:
    assert io_thread() is io_thread()
    assert io_thread().run(add(1, 2)) == 3


def test_a_spawned_child_has_its_own_loop() -> None:
    io_thread().run(add(1, 2))
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=child, args=(results,))
    process.start()
    assert results.get(timeout=30) == 23
    process.join(10)
    assert process.exitcode == 0


def test_a_coroutine_that_takes_too_long_is_cancelled() -> None:
    cancelled = threading.Event()

    async def wait() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with pytest.raises(TimeoutError):
        io_thread().run(wait(), timeout=0.05)
    assert cancelled.wait(5)


def test_the_loop_cannot_wait_for_itself() -> None:
    async def nested() -> int:
        return io_thread().run(add(1, 2))

    with pytest.raises(RuntimeError, match="wait for itself"):
        io_thread().run(nested())


def test_message_sizes_are_explicit_on_both_sides() -> None:
    for limits in (REPLAY_LIMITS, LEARNER_LIMITS):
        of_server, of_client = dict(server_options(limits)), dict(channel_options(limits))
        assert of_client["grpc.max_send_message_length"] == of_server["grpc.max_receive_message_length"] > 0
        assert of_client["grpc.max_receive_message_length"] == of_server["grpc.max_send_message_length"] > 0
    with pytest.raises(ValueError, match="unlimited"):
        MessageLimits(-1, 1)


def test_clients_do_not_ping_more_often_than_servers_allow() -> None:
    of_server, of_client = dict(server_options(REPLAY_LIMITS)), dict(channel_options(REPLAY_LIMITS))
    assert of_client["grpc.keepalive_time_ms"] >= of_server["grpc.http2.min_ping_interval_without_data_ms"]


def test_grpc_knows_every_option() -> None:
    """It ignores a name that it does not know, and what we meant to set stays as it is by default."""
    binary = Path(cygrpc.__file__).read_bytes()
    options = [*server_options(LEARNER_LIMITS, max_connection_age_seconds=1.0), *channel_options(LEARNER_LIMITS)]
    assert [name for name, _ in options if name.encode() not in binary] == []


def test_backoff_doubles_up_to_its_limit_and_begins_anew() -> None:
    backoff = Backoff(first=0.2, longest=15.0)
    waits = [backoff.next() for _ in range(12)]
    for attempt, seconds in enumerate(waits):
        base = min(15.0, 0.2 * 2**attempt)
        assert base / 2 <= seconds <= base
    backoff.reset()
    assert backoff.next() <= 0.2
    assert len({Backoff().next() for _ in range(5)}) > 1, "clients must not come back all at once"


def test_run_takes_no_longer_than_its_coroutine() -> None:
    started = time.monotonic()
    assert io_thread().run(add(2, 2), timeout=30) == 4
    assert time.monotonic() - started < 5

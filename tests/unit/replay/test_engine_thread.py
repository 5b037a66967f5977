"""The engine's thread: order, exactly-once inserts from many callers, errors, stopping."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from apexrl.replay.engine import ReplayEngine
from apexrl.replay.engine_thread import EngineStoppedError, EngineThread
from apexrl.types import Chunk, SignatureError, TableConfig

MakeChunk = Callable[..., Chunk]
MakeConfig = Callable[..., TableConfig]


def test_inserts_of_racing_callers_count_once(table_config: MakeConfig, make_chunk: MakeChunk) -> None:
    engine = ReplayEngine()
    thread = EngineThread(engine, queue_size=4)
    table = thread.submit(lambda e: e.create_or_match(table_config(capacity_items=4000))).result(5)
    stored: list[bool] = []

    def resend() -> None:
        chunk = make_chunk()
        for number in range(1, 101):
            command = lambda e, n=number: e.insert_once(b"a" * 16, n, "replay", chunk)  # noqa: E731
            stored.append(thread.submit(command).result(5))

    callers = [threading.Thread(target=resend) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(20)
    thread.stop()
    assert len(stored) == 400
    assert sum(stored) == 100
    assert table.inserted == 400
    assert table.duplicates == 300


def test_errors_reach_the_caller_and_the_thread_goes_on() -> None:
    thread = EngineThread(ReplayEngine())
    failed = thread.submit(lambda engine: engine.table("absent"))
    with pytest.raises(SignatureError, match="no table 'absent'"):
        failed.result(5)
    assert thread.submit(lambda engine: engine.learner_epoch).result(5) == 0
    thread.stop()


def test_commands_run_in_order_on_one_thread_and_stop_runs_what_waits() -> None:
    thread = EngineThread(ReplayEngine())
    gate = threading.Event()
    ran: list[tuple[int, int]] = []
    held = thread.submit(lambda _: gate.wait(5))
    futures = [thread.submit(lambda _, i=i: ran.append((i, threading.get_ident()))) for i in range(50)]
    cancelled = thread.submit(lambda _: ran.append((-1, 0)))
    assert cancelled.cancel()
    assert thread.depth >= 50
    gate.set()
    thread.stop()
    assert held.result(0)
    assert all(future.done() for future in futures)
    assert [i for i, _ in ran] == list(range(50))
    assert len({ident for _, ident in ran}) == 1
    assert not thread.is_alive
    thread.stop()
    with pytest.raises(EngineStoppedError):
        thread.submit(lambda _: None)


def test_a_full_queue_holds_the_caller_back() -> None:
    thread = EngineThread(ReplayEngine(), queue_size=1)
    started, gate = threading.Event(), threading.Event()
    thread.submit(lambda _: (started.set(), gate.wait(5)))
    assert started.wait(5)
    thread.submit(lambda _: None)
    blocked = threading.Thread(target=lambda: thread.submit(lambda _: None))
    blocked.start()
    blocked.join(0.05)
    assert blocked.is_alive()
    gate.set()
    blocked.join(5)
    assert not blocked.is_alive()
    assert thread.blocked_seconds > 0.0
    thread.stop()


def test_idle_thread_trims(table_config: MakeConfig, make_chunk: MakeChunk) -> None:
    thread = EngineThread(ReplayEngine())
    trimmed = threading.Event()

    def fill(engine: ReplayEngine) -> None:
        table = engine.create_or_match(table_config())
        for number in range(1, 40):
            engine.insert_once(b"a" * 16, number, "replay", make_chunk())
        maintain = engine.maintain

        def watched(max_pages: int = 64) -> bool:
            more = maintain(max_pages)
            if table.num_items <= 40:
                trimmed.set()
            return more

        engine.maintain = watched  # type: ignore[method-assign]

    thread.submit(fill).result(5)
    assert trimmed.wait(5)
    thread.stop()


def test_failed_housekeeping_fails_everything_that_waits() -> None:
    class Broken(ReplayEngine):
        fail = threading.Event()

        def maintain(self, max_pages: int = 64) -> bool:
            if self.fail.is_set():
                raise MemoryError("tables are broken")
            return False

    engine = Broken()
    thread = EngineThread(engine)
    gate = threading.Event()
    first = thread.submit(lambda _: (gate.wait(5), engine.fail.set()))
    # More than one turn's worth: the rest meets the failure.
    futures = [thread.submit(lambda _: None) for _ in range(100)]
    gate.set()
    first.result(5)
    with pytest.raises(EngineStoppedError) as raised:
        futures[-1].result(5)
    assert isinstance(raised.value.__cause__, MemoryError)
    assert all(future.done() or future.exception(5) is not None for future in futures)
    with pytest.raises(EngineStoppedError):
        thread.submit(lambda _: None)
    thread.stop()
    assert not thread.is_alive

"""Calls gathered for the engine's thread: together when small, at once when large, each with its own answer."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from apex_replay.gathering import FULL_MESSAGE_BYTES, GATHER_SECONDS, Gathering

Call = Callable[[], Any]


def work(calls: list[Call]) -> list[Any]:
    answers: list[Any] = []
    for call in calls:
        try:
            answers.append(call())
        except ValueError as error:
            answers.append(error)
    return answers


class Engine:
    """A thread that notes how many commands it is given."""

    def __init__(self) -> None:
        self.pool = concurrent.futures.ThreadPoolExecutor(1)
        self.commands = 0

    def submit(self, call: Callable[[], None]) -> concurrent.futures.Future[None]:
        self.commands += 1
        return self.pool.submit(call)


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine()
    yield made
    made.pool.shutdown()


def test_small_messages_go_together_and_each_gets_its_own_answer(engine: Engine) -> None:
    def fail() -> str:
        raise ValueError("this one")

    async def body() -> list[str | BaseException]:
        gathering = Gathering(asyncio.get_running_loop(), engine.submit, work)
        calls: list[Call] = [lambda: "a", fail, lambda: "b"]
        return await asyncio.gather(*(gathering.run(call, 10) for call in calls), return_exceptions=True)

    first, failed, last = asyncio.run(body())
    assert (first, last) == ("a", "b")
    assert isinstance(failed, ValueError)
    assert engine.commands == 1


@pytest.mark.parametrize(("num_bytes", "hurry"), [(FULL_MESSAGE_BYTES, False), (10, True)])
def test_a_message_that_is_full_or_hurries_waits_for_nobody(engine: Engine, num_bytes: int, hurry: bool) -> None:
    async def body() -> None:
        gathering = Gathering(asyncio.get_running_loop(), engine.submit, work)
        small = asyncio.ensure_future(gathering.run(lambda: 1, 10))
        await asyncio.sleep(0)
        assert await gathering.run(lambda: 2, num_bytes, hurry=hurry) == 2
        assert await small == 1
        # The timer of the small one has nothing left to hand over.
        await asyncio.sleep(2 * GATHER_SECONDS)

    asyncio.run(body())
    assert engine.commands == 1


def test_what_was_cancelled_is_not_done(engine: Engine) -> None:
    ran: list[str] = []

    async def body() -> None:
        gathering = Gathering(asyncio.get_running_loop(), engine.submit, work)
        gone = asyncio.ensure_future(gathering.run(lambda: ran.append("gone"), 10))
        stays = asyncio.ensure_future(gathering.run(lambda: ran.append("stays"), 10))
        await asyncio.sleep(0)
        gone.cancel()
        await stays
        with pytest.raises(asyncio.CancelledError):
            await gone

    asyncio.run(body())
    assert ran == ["stays"]


@pytest.mark.parametrize("when", ["at once", "later"])
def test_an_engine_that_has_stopped_is_told_to_all(engine: Engine, when: str) -> None:
    def submit(call: Callable[[], None]) -> concurrent.futures.Future[None]:
        if when == "at once":
            raise RuntimeError("stopped")
        future: concurrent.futures.Future[None] = concurrent.futures.Future()
        future.set_exception(RuntimeError("stopped"))
        return future

    async def body() -> list[int | BaseException]:
        gathering = Gathering(asyncio.get_running_loop(), submit, work)
        return await asyncio.gather(*(gathering.run(lambda: 1, 10) for _ in range(2)), return_exceptions=True)

    assert [str(error) for error in asyncio.run(body())] == ["stopped", "stopped"]

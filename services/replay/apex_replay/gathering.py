"""Messages of many streams handed to the engine's thread together.

A message by itself costs a wake-up of the engine's thread, one of the loop for the answer, and array operations with
cold caches, which is more than its chunks cost if they are few. Hundreds of actors send hundreds of such messages each
second; none of them minds whether its acknowledgement comes some milliseconds later.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")
AnswerT = TypeVar("AnswerT")

#: A message waits for others so long ...
GATHER_SECONDS = 0.1
#: ... or until they have so many bytes together ...
GATHERED_BYTES = 512 << 10
#: ... or one comes that shall not wait, as this large.
FULL_MESSAGE_BYTES = 128 << 10
#: A stream that sends so soon after an answer was waiting for it, with its window full, and is not made to wait more.
HURRY_SECONDS = 0.25


class Gathering(Generic[ItemT, AnswerT]):
    """To be used on ``loop``.

    Args:
        loop: where answers are awaited.
        submit: has a call run on the engine's thread, or raises.
        work: called there with what was gathered; gives an answer to each, or what is to be raised.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        submit: Callable[[Callable[[], None]], concurrent.futures.Future[None]],
        work: Callable[[list[ItemT]], Sequence[AnswerT | Exception]],
    ) -> None:
        self._loop = loop
        self._submit = submit
        self._work_on = work
        self._waiting: list[tuple[ItemT, asyncio.Future[AnswerT]]] = []
        self._num_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    async def run(self, item: ItemT, num_bytes: int, *, hurry: bool = False) -> AnswerT:
        """The answer to ``item``, a message of ``num_bytes`` and whatever belongs to it; raises what it is to raise.

        In a ``hurry`` it is handed over at once, with all that waits.
        """
        answer: asyncio.Future[AnswerT] = self._loop.create_future()
        self._waiting.append((item, answer))
        self._num_bytes += num_bytes
        if hurry or num_bytes >= FULL_MESSAGE_BYTES or self._num_bytes >= GATHERED_BYTES:
            self._hand_over()
        elif self._timer is None:
            self._timer = self._loop.call_later(GATHER_SECONDS, self._hand_over)
        return await answer

    def _hand_over(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        gathered, self._waiting, self._num_bytes = self._waiting, [], 0
        futures = [future for _, future in gathered]
        try:
            done = self._submit(lambda: self._work(gathered))
        except Exception as error:  # the engine has stopped: whoever waits is told
            _deliver(futures, [error] * len(futures))
            return
        done.add_done_callback(lambda done: self._tell_failure(done, futures))

    def _work(self, gathered: list[tuple[ItemT, asyncio.Future[AnswerT]]]) -> None:
        """On the engine's thread; a stream whose handler has gone meanwhile is left out."""
        wanted = [(item, future) for item, future in gathered if not future.cancelled()]
        answers = self._work_on([item for item, _ in wanted])
        self._loop.call_soon_threadsafe(_deliver, [future for _, future in wanted], answers)

    def _tell_failure(self, done: concurrent.futures.Future[None], futures: list[asyncio.Future[AnswerT]]) -> None:
        """The engine did not get to the end of this."""
        error = None if done.cancelled() else done.exception()
        if error is not None:
            self._loop.call_soon_threadsafe(_deliver, futures, [error] * len(futures))


def _deliver(futures: Sequence[asyncio.Future[AnswerT]], answers: Sequence[AnswerT | BaseException]) -> None:
    for future, answer in zip(futures, answers, strict=True):
        if future.done():
            continue
        if isinstance(answer, BaseException):
            future.set_exception(answer)
        else:
            future.set_result(answer)

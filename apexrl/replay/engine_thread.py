"""The one thread that owns a shard's tables.

Handlers of the network hand it commands and await futures, so no lock is ever held across an await, and a check and
the change that it allows cannot be interleaved with anything else.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from apexrl.replay.engine import ReplayEngine

T = TypeVar("T")

#: Commands between two turns of housekeeping while the queue is never empty.
COMMANDS_PER_TURN = 32
#: Seconds between two turns of housekeeping while nothing happens.
IDLE_PERIOD_SECONDS = 0.5

_Command = tuple[Callable[[ReplayEngine], Any], "Future[Any]"]


class EngineStoppedError(RuntimeError):
    """The engine's thread has ended, by :meth:`EngineThread.stop` or by a failure, which is then the cause."""


class EngineThread:
    """Runs commands on ``engine`` in the order of their submission, and its housekeeping in between.

    At most ``queue_size`` commands wait; a caller beyond that blocks until there is room (``blocked_seconds`` says for
    how long in all). The thread never waits for callers, so this always ends.
    """

    def __init__(self, engine: ReplayEngine, queue_size: int = 1024) -> None:
        if queue_size < 1:
            raise ValueError(f"queue_size is {queue_size}, must be at least 1")
        self._engine = engine
        self._commands: queue.Queue[_Command | None] = queue.Queue(queue_size)
        self._submitting = threading.Lock()
        self._stopped = False
        self._failure: BaseException | None = None
        self.blocked_seconds = 0.0
        self._thread = threading.Thread(target=self._run, name="replay-engine", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Commands that wait."""
        return self._commands.qsize()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, command: Callable[[ReplayEngine], T]) -> Future[T]:
        """Have ``command`` run on the engine; the future gives its result or raises what it raised.

        Raises EngineStoppedError after :meth:`stop` or a failure of the thread.
        """
        future: Future[T] = Future()
        with self._submitting:
            if self._stopped or self._failure is not None:
                raise EngineStoppedError("the replay engine has stopped") from self._failure
            try:
                self._commands.put_nowait((command, future))
            except queue.Full:
                begin = time.monotonic()
                self._commands.put((command, future))
                self.blocked_seconds += time.monotonic() - begin
        return future

    def stop(self) -> None:
        """Run what was submitted, then end the thread. May be called again."""
        with self._submitting:
            if not self._stopped:
                self._stopped = True
                self._commands.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:
            # Housekeeping failed: tables can no longer be trusted, so nobody may go on using them.
            self._failure = error
            self._refuse_the_rest(error)

    def _turn(self) -> bool:
        """Some commands, then housekeeping; returns whether to go on."""
        more = self._engine.maintain()
        for ran in range(COMMANDS_PER_TURN):
            try:
                # Only an idle thread waits, and only if housekeeping has nothing left to do.
                command = (
                    self._commands.get(timeout=IDLE_PERIOD_SECONDS)
                    if not (ran or more)
                    else self._commands.get_nowait()
                )
            except queue.Empty:
                return True
            if command is None:
                return False
            self._execute(*command)
        return True

    def _execute(self, command: Callable[[ReplayEngine], Any], future: Future[Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = command(self._engine)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    def _refuse_the_rest(self, cause: BaseException) -> None:
        """Fail what waits, and what a blocked :meth:`submit` still brings, until none can come any more."""
        while True:
            try:
                command = self._commands.get(timeout=0.01)
            except queue.Empty:
                if self._submitting.acquire(blocking=False):
                    self._submitting.release()
                    if self._commands.empty():
                        return
                continue
            if command is not None and command[1].set_running_or_notify_cancel():
                error = EngineStoppedError("the replay engine has stopped")
                error.__cause__ = cause
                command[1].set_exception(error)

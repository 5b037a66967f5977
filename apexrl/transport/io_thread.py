"""One asyncio loop in one thread per process, for everything that uses grpc.

Clients and servers of a process share it: grpc's asyncio support polls once per process, and several loops get in
each other's way. The thread starts with the first use, so a spawned child gets its own. Forking a process that
already talks is refused, because neither grpc nor a loop survives it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class IoThread:
    """The process's loop. Get it with :func:`io_thread`."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="apex-io", daemon=True)
        self._thread.start()
        self._started.wait()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    @property
    def is_current(self) -> bool:
        """Whether the caller runs on the loop's thread, where nothing may block."""
        return threading.current_thread() is self._thread

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run ``coroutine`` on the loop."""
        if os.getpid() != self._pid:
            coroutine.close()
            raise RuntimeError("this process was forked after it had started to talk; start processes with spawn")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run ``coroutine`` on the loop and wait for its result. Not from the loop's own thread.

        Raises:
            TimeoutError: it took longer than ``timeout`` seconds; it has been cancelled.
        """
        if self.is_current:
            coroutine.close()
            raise RuntimeError("IoThread.run would wait for itself")
        future = self.submit(coroutine)
        try:
            return future.result(timeout)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.call_soon(self._started.set)
        self._loop.run_forever()


_lock = threading.Lock()
_current: IoThread | None = None


def io_thread() -> IoThread:
    """The loop of this process, started if need be."""
    global _current
    with _lock:
        if _current is None:
            _current = IoThread()
        return _current

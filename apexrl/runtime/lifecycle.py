"""How a process begins and ends: signals, orderly stop, exit codes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from apexrl.config import ConfigError
from apexrl.runtime.errors import (
    EXIT_CONFIG,
    EXIT_FAILURE,
    EXIT_FENCED,
    ArchitectureError,
    CheckpointError,
    Fenced,
)
from apexrl.telemetry.logging import get_logger

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: Signals that come so soon after the first are the same one: `make` and `timeout` pass on what the group got already.
ECHO_SECONDS = 0.5


class Shutdown:
    """The wish to stop, from a signal or from the program itself.

    Signals are noticed by a thread of their own through ``signal.set_wakeup_fd``: that works while the main thread
    sits in a long call of a C library, and setting an event from a Python signal handler could deadlock with a main
    thread that is just entering ``wait``. The first signal asks, a second one that is no echo of it ends the process at
    once.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], object]] = []
        self.reason: str | None = None

    @property
    def requested(self) -> bool:
        """Whether the process should stop."""
        return self._event.is_set()

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Wait until a stop is requested; returns whether it is."""
        return self._event.wait(timeout_seconds)

    def request(self, reason: str) -> None:
        """Ask for an orderly stop. Only the first reason counts."""
        with self._lock:
            if self._event.is_set():
                return
            self.reason = reason
            self._event.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def on_request(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` once, from another thread, when a stop is requested; now, if it already is.

        For event loops: ``shutdown.on_request(lambda: loop.call_soon_threadsafe(stopped.set))``.
        """
        with self._lock:
            if not self._event.is_set():
                self._callbacks.append(callback)
                return
        callback()

    @contextlib.contextmanager
    def on_signals(self, *, until_exit: bool = False) -> Iterator[None]:
        """Let SIGTERM and SIGINT request a stop while the block runs. Only in the main thread.

        Args:
            until_exit: what follows the block is the process's end. If a signal asked for it, more of them are ignored
                from then on: an echo must not turn an orderly stop into a death by signal.
        """
        read_fd, write_fd = os.pipe()
        os.set_blocking(write_fd, False)
        former_fd = signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        former = {number: signal.signal(number, _noted) for number in STOP_SIGNALS}
        watcher = threading.Thread(target=self._watch, args=(read_fd,), name="signals", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ending = until_exit and self.reason in {number.name for number in STOP_SIGNALS}
            for number, handler in former.items():
                signal.signal(number, signal.SIG_IGN if ending else handler)
            signal.set_wakeup_fd(former_fd)
            os.close(write_fd)  # ends the watcher
            watcher.join()
            os.close(read_fd)

    def _watch(self, read_fd: int) -> None:
        signalled: float | None = None
        while data := os.read(read_fd, 1):
            number = data[0]
            if number not in STOP_SIGNALS:
                continue
            now = time.monotonic()
            if signalled is None:
                signalled = now
                self.request(signal.Signals(number).name)
            elif now - signalled > ECHO_SECONDS:
                os.write(2, b"second signal: exiting at once\n")
                os._exit(128 + number)


def run_service(service: str, body: Callable[[Shutdown], int | None]) -> int:
    """Run a service's ``body`` and turn its outcome into an exit code.

    ``body`` gets a :class:`Shutdown` that SIGTERM and SIGINT request, and returns when it has stopped (None = 0).

    Returns:
        0 after an orderly stop, also one by a signal; 2 for a configuration that cannot work and 1 for a checkpoint
        that cannot be written or read, each with one line on stderr; 75 if another learner took over. Any other
        exception is a bug and passes through.
    """
    shutdown = Shutdown()
    with shutdown.on_signals(until_exit=True):
        try:
            return body(shutdown) or 0
        except (ConfigError, ArchitectureError) as error:
            print(f"{service}: {error}", file=sys.stderr)
            return EXIT_CONFIG
        except CheckpointError as error:
            print(f"{service}: {error}", file=sys.stderr)
            return EXIT_FAILURE
        except Fenced as error:
            get_logger(__name__).error("fenced", service=service, reason=str(error))
            return EXIT_FENCED


class Deadline:
    """Time left of a grace period, for the steps of an orderly stop that share it."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + seconds

    def left_seconds(self) -> float:
        """Seconds left, never below 0."""
        return max(0.0, self._end - self._clock())


def peer_name() -> str:
    """Name of this process for logs of others: the pod's name, or host:pid."""
    return os.environ.get("POD_NAME") or f"{socket.gethostname()}:{os.getpid()}"


def _noted(number: int, frame: FrameType | None) -> None:
    """A Python handler must exist for the wakeup descriptor to be written; the watcher does the work."""

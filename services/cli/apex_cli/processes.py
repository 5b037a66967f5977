"""Child processes of a local run: started, watched, restarted when they die, stopped in order."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

#: A service that ends this often within the window is not restarted again.
MAX_RESTARTS = 5
RESTART_WINDOW_SECONDS = 120.0
#: Exit codes after which a restart cannot help: bad configuration, fenced by another learner.
FATAL_EXIT_CODES = frozenset({2, 75})

_PR_SET_PDEATHSIG = 1


class ServiceFailedError(RuntimeError):
    """A service of the local run ended for good; the message holds the end of its log."""


@dataclass
class Service:
    """One child process: a Python module with arguments, its log file, and how often it had to be restarted."""

    name: str
    module: str
    arguments: Sequence[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    restarts: list[float] = field(default_factory=list)

    def start(self) -> None:
        """Start the process in its own session, so that a terminal's Ctrl-C reaches only the launcher."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module, *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
        self.started = time.monotonic()

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def supervise(self) -> None:
        """Restart the process if it died; raise :class:`ServiceFailedError` if that does not help."""
        if self.process is None or self.process.poll() is None:
            return
        code = self.process.returncode
        now = time.monotonic()
        self.restarts = [moment for moment in self.restarts if now - moment < RESTART_WINDOW_SECONDS]
        if code in FATAL_EXIT_CODES or len(self.restarts) >= MAX_RESTARTS:
            raise ServiceFailedError(f"{self.name} ended with code {code}; its log ends:\n{self.log_tail()}")
        self.restarts.append(now)
        self.start()

    def log_tail(self, lines: int = 15) -> str:
        if not self.log.exists():
            return "(no log)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def terminate(self) -> None:
        if self.running and self.process is not None:
            self.process.send_signal(signal.SIGTERM)

    def wait(self, deadline: float) -> bool:
        """Wait for the process until ``deadline`` (monotonic); kill it then. True if it ended by itself."""
        if self.process is None:
            return True
        try:
            self.process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return False
        return True


def stop_in_order(stages: Sequence[tuple[Sequence[Service], float]]) -> list[str]:
    """Stop stage after stage, each within its seconds; returns the names that had to be killed."""
    killed = []
    for services, seconds in stages:
        deadline = time.monotonic() + seconds
        for service in services:
            service.terminate()
        killed += [service.name for service in services if not service.wait(deadline)]
    return killed


def _die_with_parent() -> None:
    """Ask Linux to end this child when the launcher dies without saying goodbye."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == 1:
        os._exit(1)

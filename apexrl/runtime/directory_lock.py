"""One writer per checkpoint directory, by an advisory lock that the kernel drops when the process ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from apexrl.runtime.errors import CheckpointError

LOCK_NAME = ".lock"


class DirectoryLock:
    """Holds ``directory/.lock`` (``flock``) from construction to :meth:`release`; creates the directory.

    Raises:
        CheckpointError: another process holds it; the message says which one, as far as it is known.
    """

    def __init__(self, directory: Path) -> None:
        path = directory / LOCK_NAME
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise CheckpointError(f"checkpoint directory {directory}: cannot be used: {error}") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            raise CheckpointError(
                f"checkpoint directory {directory}: another learner is writing to it (process {holder})"
            ) from error
        with contextlib.suppress(OSError):  # a full disk: the lock holds, only the note of its owner is missing
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let go; more than once is fine."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> DirectoryLock:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

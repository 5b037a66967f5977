"""Writes checkpoints on a thread of its own, so that the trainer never waits for a disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from apexrl.runtime.checkpoint import Checkpoint, CheckpointEntry, CheckpointStore
from apexrl.runtime.errors import CheckpointError, Fenced
from apexrl.telemetry.logging import get_logger


class Written(NamedTuple):
    """A checkpoint that was written."""

    entry: CheckpointEntry
    num_bytes: int
    seconds: float


class CheckpointWriter:
    """Takes checkpoints and saves them one after the other; at most one waits, and a newer one replaces it.

    A checkpoint that cannot be written is logged and counted in ``failures``; training goes on. A :class:`Fenced` or
    any other exception of the thread is raised by the next call.

    Args:
        store: Where to save.
        on_written: Called on the writer's thread after each checkpoint (for metrics).
        on_failed: Called on the writer's thread after a checkpoint could not be written.
    """

    def __init__(
        self,
        store: CheckpointStore,
        *,
        on_written: Callable[[Written], None] | None = None,
        on_failed: Callable[[], None] | None = None,
    ) -> None:
        self._store = store
        self._on_written = on_written
        self._on_failed = on_failed
        self._log = get_logger(__name__)
        self._condition = threading.Condition()
        self._pending: Checkpoint | None = None
        self._busy = False
        self._closed = False
        self._error: BaseException | None = None
        self.failures = 0
        self.newest: Written | None = None
        self._thread = threading.Thread(target=self._run, name="checkpoint-writer", daemon=True)
        self._thread.start()

    def submit(self, checkpoint: Checkpoint) -> None:
        """Have ``checkpoint`` written soon. Returns at once."""
        with self._condition:
            self._raise_error()
            if self._closed:
                raise RuntimeError("the checkpoint writer is closed")
            if self._pending is not None:
                self._log.warning("disk slower than checkpoints, one left out", version=str(self._pending.version))
            self._pending = checkpoint
            self._condition.notify_all()

    def check(self) -> None:
        """Raise what ended the writer's thread, if anything did (:class:`Fenced`)."""
        with self._condition:
            self._raise_error()

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Wait until all that was submitted is written or has failed; returns False if that took too long."""
        with self._condition:
            idle = self._condition.wait_for(
                lambda: self._error is not None or (self._pending is None and not self._busy), timeout_seconds
            )
            self._raise_error()
            return idle

    def close(self, timeout_seconds: float | None = None) -> bool:
        """Write what was submitted and end the thread; returns False if it still writes after ``timeout_seconds``."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        self._thread.join(timeout_seconds)
        with self._condition:
            self._raise_error()
        return not self._thread.is_alive()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._pending is not None or self._closed)
                if self._pending is None:
                    return
                checkpoint, self._pending, self._busy = self._pending, None, True
            try:
                self._save(checkpoint)
            except BaseException as error:  # handed to the trainer by its next call
                with self._condition:
                    self._error = error
                    self._condition.notify_all()
                return
            with self._condition:
                self._busy = False
                self._condition.notify_all()

    def _save(self, checkpoint: Checkpoint) -> None:
        start = time.monotonic()
        try:
            entry = self._store.save(checkpoint)
        except Fenced:
            raise
        except CheckpointError as error:
            self.failures += 1
            self._log.error("checkpoint not written, training goes on", reason=str(error))
            if self._on_failed is not None:
                self._on_failed()
            return
        num_bytes = sum(file.stat().st_size for file in entry.path.iterdir())
        self.newest = Written(entry, num_bytes, time.monotonic() - start)
        self._log.info(
            "checkpoint written",
            version=str(entry.version),
            path=str(entry.path),
            bytes=num_bytes,
            seconds=round(self.newest.seconds, 3),
        )
        if self._on_written is not None:
            self._on_written(self.newest)

"""Durable replay: what a shard stores is appended to segments on disk, by a thread of its own.

The engine's thread only queues. A chunk is acknowledged when it is in memory; at most ``flush_seconds`` of them are
lost with the process. When the disk is full or slow, chunks stay unwritten and are counted, and training goes on.

A table's chunks leave first in, first out, so its segments die from the oldest on and are deleted whole.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, unquote

from apex_replay.journal_format import MAGIC, Record, encode_record
from apexrl.runtime.atomic_files import replace_file, sync_directory
from apexrl.telemetry.logging import get_logger
from apexrl.types import Chunk

log = get_logger(__name__)

SEGMENT_BYTES = 64 << 20
#: Chunks that wait for the disk; beyond it they are not journaled.
MAX_QUEUED_BYTES = 64 << 20
#: After a failure of the disk the next attempt is made this much later.
RETRY_SECONDS = 30.0
STATE_NAME = "state.json"
ASIDE_NAME = "aside"
_SEGMENT_SUFFIX = ".segment"
_PRIORITIES_SUFFIX = ".priorities.npz"


class JournalError(RuntimeError):
    """The directory cannot be used; the message names it."""


@dataclass
class _Table:
    """A table as the engine's thread sees it."""

    next_sequence: int = 0
    live: deque[int] = field(default_factory=deque)
    """Sequence numbers of the chunks that the table still holds, oldest first."""


@dataclass
class _Segment:
    path: Path
    last_sequence: int


def segment_path(directory: Path, table: str, first_sequence: int) -> Path:
    """Where the segment lies that begins with a chunk."""
    return directory / f"{quote(table, safe='')}-{first_sequence:020d}{_SEGMENT_SUFFIX}"


def segments(directory: Path) -> dict[str, list[tuple[int, Path]]]:
    """Table -> (first sequence, path) of its segments, oldest first."""
    found: dict[str, list[tuple[int, Path]]] = {}
    for path in sorted(directory.glob(f"*-*{_SEGMENT_SUFFIX}")):
        name, _, first = path.name.removesuffix(_SEGMENT_SUFFIX).rpartition("-")
        if first.isdecimal():
            found.setdefault(unquote(name), []).append((int(first), path))
    return found


def priorities_path(directory: Path, table: str) -> Path:
    """Where a table's priorities lie."""
    return directory / f"{quote(table, safe='')}{_PRIORITIES_SUFFIX}"


class Journal:
    """The journal of one shard. Public methods are the engine thread's, but for :meth:`close`.

    Args:
        directory: of this shard alone; made if need be.
        flush_seconds: between two syncs to the disk.
        segment_bytes: at which a segment ends.
        max_queued_bytes: of chunks that wait for the disk.
        clock: seconds, monotonic.

    Raises:
        JournalError: the directory cannot be made or written, or another process uses it.
    """

    def __init__(
        self,
        directory: Path,
        *,
        flush_seconds: float = 1.0,
        segment_bytes: int = SEGMENT_BYTES,
        max_queued_bytes: int = MAX_QUEUED_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.directory = directory
        self._flush_seconds = flush_seconds
        self._segment_bytes = segment_bytes
        self._max_queued_bytes = max_queued_bytes
        self._clock = clock
        self._lock_fd = _lock(directory)
        self._tables: dict[str, _Table] = {}
        self.records_written = 0
        self.bytes_written = 0
        self.records_dropped = 0
        """Chunks that were not journaled: the disk was full, or too slow."""
        self.failure: str | None = None
        """Why nothing is written at present; None if it is."""
        self._retry_at = 0.0
        self._condition = threading.Condition()
        self._commands: deque[Callable[[], None]] = deque()
        self._queued_bytes = 0
        self._closing = False
        self._closed_segments: dict[str, list[_Segment]] = {}
        self._open: dict[str, tuple[BinaryIO, _Segment]] = {}
        self._dirty = False
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    def start(self, live: dict[str, list[int]]) -> None:
        """Begin to write, behind what was recovered: table -> sequence numbers of the chunks that it holds."""
        for name, sequences in live.items():
            self._tables[name] = _Table(sequences[-1] + 1 if sequences else 0, deque(sequences))
        for name, found in segments(self.directory).items():
            own = self._table(name)
            # No segment is written again: the last one may hold nothing readable, and its name is its first sequence.
            own.next_sequence = max(own.next_sequence, found[-1][0] + 1)
            # Every segment ends before the next begins.
            ends = [first for first, _ in found[1:]] + [own.next_sequence]
            self._closed_segments[name] = [_Segment(path, end - 1) for (_, path), end in zip(found, ends, strict=True)]
        self._thread.start()

    def stored(self, incarnation: bytes, number: int, table: str, chunk: Chunk, inserted: int) -> None:
        """A chunk is in the table, into which so many items were ever ``inserted``."""
        own = self._table(table)
        sequence = own.next_sequence
        own.next_sequence += 1
        own.live.append(sequence)
        size = chunk.num_bytes
        with self._condition:
            if self._queued_bytes + size > self._max_queued_bytes:
                self.records_dropped += 1
                return
            self._queued_bytes += size
        self._put(lambda: self._write(table, Record(sequence, inserted, incarnation, number, chunk), size))

    def live_sequences(self, table: str, pages_used: int) -> list[int]:
        """Sequence numbers of the ``pages_used`` chunks that a table holds, oldest first; older ones may be deleted."""
        own = self._table(table)
        while len(own.live) > pages_used:
            own.live.popleft()
        first = own.live[0] if own.live else own.next_sequence
        self._put(lambda: self._delete_before(table, first))
        return list(own.live)

    def save(self, name: str, data: bytes) -> None:
        """Replace a small file of the journal."""
        self._put(lambda: replace_file(self.directory / name, data))

    def set_aside(self) -> None:
        """The tables were dropped: keep what was written for people (one generation of it), and begin anew."""
        self._tables.clear()
        self._put(self._move_aside)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until everything that was queued is on disk; False if ``timeout`` seconds passed."""
        done = threading.Event()

        def finish() -> None:
            self._sync()
            done.set()

        self._put(finish)
        return done.wait(timeout)

    def close(self) -> None:
        """Write what is queued, and end. May be called again."""
        with self._condition:
            if self._closing:
                return
            self._closing = True
            self._condition.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        os.close(self._lock_fd)

    def _table(self, name: str) -> _Table:
        return self._tables.setdefault(name, _Table())

    def _put(self, command: Callable[[], None]) -> None:
        with self._condition:
            self._commands.append(command)
            self._condition.notify_all()

    # --- the writer's thread ---

    def _run(self) -> None:
        synced = self._clock()
        while True:
            with self._condition:
                if not self._commands and not self._closing:
                    self._condition.wait(self._flush_seconds if self._dirty else None)
                command = self._commands.popleft() if self._commands else None
                if command is None and self._closing:
                    break
            if command is not None:
                self._guarded(command)
            if self._dirty and self._clock() - synced >= self._flush_seconds:
                self._guarded(self._sync)
                synced = self._clock()
        self._guarded(self._sync)
        self._close_files()

    def _guarded(self, command: Callable[[], None]) -> None:
        try:
            command()
        except OSError as error:
            if self.failure is None:
                log.error("the journal cannot be written; training goes on without it", error=str(error))
            self.failure = str(error)
            self._retry_at = self._clock() + RETRY_SECONDS
            self._close_files()

    def _write(self, table: str, record: Record, size: int) -> None:
        with self._condition:
            self._queued_bytes -= size
        if self.failure is not None and self._clock() < self._retry_at:
            self.records_dropped += 1
            return
        data = encode_record(record)
        try:
            file, segment = self._open_segment(table, record.sequence)
            file.write(data)
        except OSError:
            self.records_dropped += 1
            raise
        segment.last_sequence = record.sequence
        self._dirty = True
        self.records_written += 1
        self.bytes_written += len(data)
        if self.failure is not None:
            self._sync()
            log.info("the journal is written again", chunks_missing=self.records_dropped)
            self.failure = None
        if file.tell() >= self._segment_bytes:
            self._sync()
            file.close()
            self._closed_segments.setdefault(table, []).append(segment)
            del self._open[table]

    def _open_segment(self, table: str, sequence: int) -> tuple[BinaryIO, _Segment]:
        if table not in self._open:
            segment = _Segment(segment_path(self.directory, table, sequence), sequence)
            file = open(segment.path, "wb")  # noqa: SIM115 - kept open over many records
            self._open[table] = (file, segment)
            file.write(MAGIC)
            sync_directory(self.directory)
        return self._open[table]

    def _sync(self) -> None:
        for file, _ in self._open.values():
            file.flush()
            os.fsync(file.fileno())
        self._dirty = False

    def _delete_before(self, table: str, first: int) -> None:
        kept = self._closed_segments.get(table, [])
        while kept and kept[0].last_sequence < first:
            kept.pop(0).path.unlink(missing_ok=True)

    def _move_aside(self) -> None:
        self._close_files()
        self._closed_segments.clear()
        aside = self.directory / ASIDE_NAME
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        for path in self.directory.iterdir():
            if path.is_file() and path.suffix in (_SEGMENT_SUFFIX, ".npz", ".json"):
                path.rename(aside / path.name)
        sync_directory(self.directory)

    def _close_files(self) -> None:
        """Close what is open; a segment that broke off is read up to there."""
        for table, (file, segment) in self._open.items():
            try:
                file.close()
            except OSError as error:
                log.warning("a segment of the journal was not closed", path=str(segment.path), error=str(error))
            self._closed_segments.setdefault(table, []).append(segment)
        self._open.clear()
        self._dirty = False


def _lock(directory: Path) -> int:
    """Make the directory this process's own; the descriptor that holds the lock."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        fd = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise JournalError(f"replay.journal_directory {directory} cannot be used: {error}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise JournalError(f"replay.journal_directory {directory} is in use by another shard") from error
    return fd

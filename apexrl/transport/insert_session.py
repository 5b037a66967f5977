"""The actor's side of an insert stream without the socket: numbers, window, messages, resending.

Chunks are numbered from 1 per (incarnation, shard). They go out in order, in messages, and are kept until the shard
acknowledges them. When a stream breaks, whatever was not acknowledged goes out again, in order, behind what the shard
says it has seen. So a chunk is stored at least once, and because the shard drops numbers it knows, exactly once.

An :class:`InsertSession` is not thread-safe; its user locks. The gRPC client and serial mode drive the same class.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from apexrl.transport import replay_pb2 as pb
from apexrl.transport import wire
from apexrl.transport.channel import REPLAY_LIMITS
from apexrl.transport.handshake import Handshake
from apexrl.types import Chunk, TableConfig

MESSAGE_BYTES = 256 << 10
MESSAGE_AGE_SECONDS = 0.5
INCARNATION_BYTES = 16
#: Room for everything in a message that is not a chunk's own bytes.
_MESSAGE_OVERHEAD_BYTES = 64 << 10


class NumberedChunk(NamedTuple):
    """A chunk in the window."""

    number: int
    chunk: Chunk
    since: float
    """When it was put, on the session's clock."""
    num_bytes: int
    """Of the chunk; asked for at every turn."""


class InsertSession:
    """Numbers chunks, packs them into messages, and remembers what was not acknowledged.

    Args:
        table: where the chunks go.
        max_unacked_chunks: chunks taken but not acknowledged, sent or not; with so many the session is full.
        incarnation: 16 random bytes of this process start.
        message_bytes: a message closes at this size ...
        message_age_seconds: ... or when its oldest chunk is this old.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        table: TableConfig,
        max_unacked_chunks: int,
        *,
        incarnation: bytes | None = None,
        message_bytes: int = MESSAGE_BYTES,
        message_age_seconds: float = MESSAGE_AGE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if max_unacked_chunks < 1:
            raise ValueError(f"max_unacked_chunks is {max_unacked_chunks}, must be at least 1")
        self.table = table
        self.max_unacked_chunks = max_unacked_chunks
        self.incarnation = os.urandom(INCARNATION_BYTES) if incarnation is None else incarnation
        self._message_bytes = message_bytes
        self._message_age = message_age_seconds
        self._clock = clock
        self._last_number = 0
        self._last_acked = 0
        self._unsent: deque[NumberedChunk] = deque()
        self._unsent_bytes = 0
        self._sent: deque[NumberedChunk] = deque()
        self._open = False
        self.chunks_resent = 0
        """Chunks that went out more than once, ever."""

    @property
    def is_open(self) -> bool:
        """Whether the shard has answered the open request of the current stream."""
        return self._open

    @property
    def unacked(self) -> int:
        """Chunks taken and not acknowledged."""
        return len(self._unsent) + len(self._sent)

    @property
    def room(self) -> int:
        """Chunks that may be put now."""
        return self.max_unacked_chunks - self.unacked

    @property
    def needs_attention(self) -> bool:
        """Whether the chunk put last matters to who waits for messages: it closes one, or its age starts to count.

        Waking another thread for every chunk costs as much as sending it.
        """
        return len(self._unsent) == 1 or self.room < 1 or self._unsent_bytes >= self._message_bytes

    @property
    def last_number(self) -> int:
        """Number of the chunk put last; 0 = none."""
        return self._last_number

    @property
    def last_acked(self) -> int:
        """Highest number acknowledged; 0 = none."""
        return self._last_acked

    def put(self, chunk: Chunk) -> int:
        """Take a chunk; returns its number.

        Raises:
            BufferError: the window is full; ask :attr:`room` first.
            ValueError: the chunk is larger than any message may be.
        """
        if self.room < 1:
            raise BufferError(f"{self.unacked} chunks are unacknowledged, max_unacked_chunks is reached")
        limit = REPLAY_LIMITS.server_receives - _MESSAGE_OVERHEAD_BYTES
        num_bytes = chunk.num_bytes
        if num_bytes > limit:
            raise ValueError(
                f"a chunk of table {self.table.name!r} has {num_bytes} bytes, a message takes {limit}: "
                "lower replay.chunk_starts"
            )
        self._last_number += 1
        self._unsent.append(NumberedChunk(self._last_number, chunk, self._clock(), num_bytes))
        self._unsent_bytes += num_bytes
        return self._last_number

    def open_request(self, handshake: Handshake) -> pb.InsertRequest:
        """First request of a stream."""
        return pb.InsertRequest(
            open=pb.InsertOpen(
                handshake=handshake.to_proto(),
                incarnation=self.incarnation,
                table=wire.table_config_to_proto(self.table),
            )
        )

    def seconds_until_message(self) -> float | None:
        """Seconds until the next message closes by age, 0 if one is ready, None if there is nothing to send."""
        if not self._open or not self._unsent:
            return None
        if self.room < 1 or self._unsent_bytes >= self._message_bytes:
            return 0.0
        return max(0.0, self._unsent[0].since + self._message_age - self._clock())

    def next_message(self, *, force: bool = False) -> pb.InsertRequest | None:
        """The next message if one is closed; with ``force`` also an open one. Its chunks count as sent."""
        wait = self.seconds_until_message()
        if wait is None or (wait > 0 and not force):
            return None
        batch: list[NumberedChunk] = []
        size = 0
        while self._unsent and (not batch or size + self._unsent[0].num_bytes <= self._message_bytes):
            numbered = self._unsent.popleft()
            size += numbered.num_bytes
            batch.append(numbered)
        self._unsent_bytes -= size
        self._sent.extend(batch)
        return pb.InsertRequest(
            chunks=pb.InsertChunks(
                numbers=wire.to_bytes([numbered.number for numbered in batch], "uint64"),
                chunks=wire.chunks_to_proto([numbered.chunk for numbered in batch]),
            )
        )

    def on_response(self, response: pb.InsertResponse) -> int:
        """Apply what the shard says; returns the number of chunks that it acknowledged."""
        if response.HasField("opened"):
            self._open = True
            return self._acknowledge(response.opened.last_seen)
        return self._acknowledge(response.ack.last_seen)

    def on_disconnected(self) -> None:
        """The stream is gone: what was not acknowledged goes out again, in order."""
        self._open = False
        self.chunks_resent += len(self._sent)
        self._unsent_bytes += sum(numbered.num_bytes for numbered in self._sent)
        self._unsent.extendleft(reversed(self._sent))
        self._sent.clear()

    def _acknowledge(self, last_seen: int) -> int:
        before = self.unacked
        # A shard that answers "seen" to a resent chunk may do so while the chunk waits to go out again.
        while self._sent and self._sent[0].number <= last_seen:
            self._sent.popleft()
        while self._unsent and self._unsent[0].number <= last_seen:
            self._unsent_bytes -= self._unsent.popleft().num_bytes
        self._last_acked = max(self._last_acked, min(last_seen, self._last_number))
        return before - self.unacked

"""From draw replies to batches: what to ask the shard for, and how its answers become tensors.

Not thread-safe: one thread (the applier), or serial mode, owns a pipeline.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from apexrl.experience.importance import importance_weights
from apexrl.experience.batch import BatchBuffer, BatchRing
from apexrl.experience.mirror import HostMirror
from apexrl.replay.limiter import SamplesPerInsertLimiter
from apexrl.transport import replay_pb2 as pb
from apexrl.transport import wire
from apexrl.types import SignatureError, TableConfig, TableTotals

#: Seconds of updates that batches are kept ready for.
PREFETCH_SECONDS = 0.25
MIN_DEPTH, MAX_DEPTH = 2, 64
#: A draw request asks for as many batches as the learner uses up in this time.
REQUEST_SECONDS = 0.010


class PrefetchDepth:
    """How many batches to keep ready: about a quarter of a second of updates, or a fixed number."""

    def __init__(self, fixed: int) -> None:
        self._fixed = fixed
        self._update_seconds = 0.1

    def observe(self, update_seconds: float) -> None:
        """Take in the duration of one update."""
        self._update_seconds += 0.1 * (update_seconds - self._update_seconds)

    @property
    def largest(self) -> int:
        """The most batches that will ever be kept."""
        return max(MIN_DEPTH, self._fixed) if self._fixed else MAX_DEPTH

    @property
    def batches(self) -> int:
        if self._fixed:
            return max(MIN_DEPTH, self._fixed)
        return min(MAX_DEPTH, max(MIN_DEPTH, math.ceil(PREFETCH_SECONDS / max(self._update_seconds, 1e-6))))

    @property
    def batches_per_request(self) -> int:
        return max(1, min(self.batches // 4, math.ceil(REQUEST_SECONDS / max(self._update_seconds, 1e-6))))


class _Outstanding(NamedTuple):
    number: int
    batches: int
    sent: float


class DrawPipeline:
    """Plans draw requests within the limiter and applies their replies, strictly in order.

    Applying a reply copies its new chunks to their slots of the mirror and gathers the reply's windows at once. A
    gather at the time of use would read slots that a later reply has overwritten.
    """

    def __init__(
        self,
        table: TableConfig,
        *,
        batch_size: int,
        depth: PrefetchDepth,
        limiter: SamplesPerInsertLimiter,
        importance_sampling_exponent: Callable[[], float],
        requests_made: int = 0,
    ) -> None:
        self._table = table
        self._batch_size = batch_size
        self._depth = depth
        self._limiter = limiter
        self._exponent = importance_sampling_exponent
        self._mirror: HostMirror | None = None
        self._request_number = requests_made
        self._outstanding: deque[_Outstanding] = deque()
        self.totals = TableTotals(0.0, 0, 0, 0)
        self.ring = BatchRing(table.signature, batch_size, depth.largest + 2)
        self.chunks_received = 0
        self.bytes_received = 0

    @property
    def requests_made(self) -> int:
        """Number of the newest request. It seeds the draws, so a resumed learner goes on counting."""
        return self._request_number

    @property
    def batches_in_flight(self) -> int:
        """Batches asked for and not applied yet."""
        return sum(request.batches for request in self._outstanding)

    def open(self, opened: pb.OpenedTable, boot: bytes) -> None:
        """A stream begins: the mirror is empty on both sides, and what was asked of a former stream is forgotten."""
        if self._mirror is None or self._mirror.num_slots != opened.mirror_slots:
            self._mirror = HostMirror(self._table.signature, opened.mirror_slots)
        self._outstanding.clear()
        self.observe(wire.totals_from_proto(opened.totals), boot)

    def observe(self, totals: TableTotals, boot: bytes) -> None:
        """Take in a shard's report."""
        self.totals = totals
        self._limiter.observe(0, totals, boot)

    def plan(self, ready: int) -> pb.DrawRequest | None:
        """The next request, if a batch is missing and the limiter allows it. ``ready`` batches wait for the learner."""
        if self._mirror is None or self.totals.num_items == 0:
            return None
        missing = self._depth.batches - ready - self.batches_in_flight
        batches = min(missing, self._depth.batches_per_request)
        drawn_ahead = self.batches_in_flight * self._batch_size
        while batches > 0 and not self._limiter.may_draw(drawn_ahead + batches * self._batch_size):
            batches -= 1
        if batches <= 0:
            return None
        self._request_number += 1
        self._outstanding.append(_Outstanding(self._request_number, batches, time.monotonic()))
        return pb.DrawRequest(
            table=self._table.name,
            request_number=self._request_number,
            counts=np.full(batches, self._batch_size, "<u4").tobytes(),
        )

    def apply(self, reply: pb.DrawReply, boot: bytes) -> list[BatchBuffer]:
        """Mirror the reply's chunks and gather its windows into batches; hand them back to ``ring`` after use.

        Raises:
            SignatureError: the reply is malformed or a chunk does not decode. The stream must be closed, because the
                mirror no longer holds what the shard believes.
        """
        if self._mirror is None or not self._outstanding:
            raise SignatureError(f"draw reply {reply.request_number}: nothing was asked for on this stream")
        request = self._outstanding.popleft()
        if reply.request_number != request.number:
            raise SignatureError(f"draw.request_number is {reply.request_number}, must be {request.number}")
        drawn = wire.draw_from_proto(self._table.signature, self._mirror.num_slots, reply)
        for slot, chunk in zip(drawn.new_slots, drawn.new_chunks, strict=True):
            self._mirror.put(int(slot), chunk.rows, chunk.starts, chunk.blocks)
        self.chunks_received += len(drawn.new_chunks)
        self.bytes_received += reply.ByteSize()
        self.observe(drawn.totals, boot)
        batches = []
        for begin in range(0, len(drawn.keys), self._batch_size):
            part = slice(begin, begin + self._batch_size)
            buffer = self.ring.acquire()
            self._mirror.gather(
                drawn.slots[part], drawn.start_rows[part], drawn.lengths[part], drawn.prefixes[part], buffer
            )
            buffer.weights[:] = importance_weights(
                drawn.probabilities[part], drawn.totals.num_items, self._exponent()
            )
            buffer.keys[:] = drawn.keys[part]
            batches.append(buffer)
        return batches

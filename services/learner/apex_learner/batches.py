"""From draw replies to batches: what to ask the shard for, and how its answers become tensors.

Not thread-safe: one thread (the applier), or serial mode, owns a pipeline.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from apexrl.config import ConfigError
from apexrl.experience.batch import BatchBuffer, BatchRing
from apexrl.experience.importance import importance_weights
from apexrl.experience.mirror import HostMirror
from apexrl.replay.limiter import SamplesPerInsertLimiter
from apexrl.transport.sample_client import OpenedTable
from apexrl.transport.wire import DrawResult
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


def mirror_slots(table: TableConfig, batch_size: int, mirror_bytes: int) -> int:
    """Pages that fit in a mirror of ``mirror_bytes``; 0 = all of the table.

    Raises:
        ConfigError: not even those of one batch do.
    """
    page_bytes = table.signature.page_bytes
    if mirror_bytes == 0 or mirror_bytes >= table.num_pages * page_bytes:
        return 0
    least = min(batch_size, table.num_pages) * page_bytes
    if mirror_bytes < least:
        raise ConfigError(
            f"learner.mirror_bytes is {mirror_bytes}, must be 0 (the whole replay) or at least {least}: a batch of "
            f"{batch_size} items may lie in as many chunks of {page_bytes} bytes"
        )
    return mirror_bytes // page_bytes


class DrawPlan(NamedTuple):
    """A draw request: its number, and how many items each of its batches gets."""

    request_number: int
    counts: list[int]


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
        #: So few batches per request that a small mirror holds all their pages.
        self._batches_per_request = 1
        self._request_number = requests_made
        self._outstanding: deque[DrawPlan] = deque()
        self.totals = TableTotals(0.0, 0, 0, 0)
        self.ring = BatchRing(table.signature, batch_size, depth.largest + 2)
        self.chunks_received = 0

    @property
    def requests_made(self) -> int:
        """Number of the newest request. It seeds the draws, so a resumed learner goes on counting."""
        return self._request_number

    @property
    def batches_in_flight(self) -> int:
        """Batches asked for and not applied yet."""
        return sum(len(plan.counts) for plan in self._outstanding)

    def open(self, opened: OpenedTable, boot: bytes) -> None:
        """A stream begins: the mirror is empty on both sides, and what was asked of a former stream is forgotten."""
        if self._mirror is None or self._mirror.num_slots != opened.mirror_slots:
            self._mirror = HostMirror(self._table.signature, opened.mirror_slots)
        self._batches_per_request = max(1, opened.mirror_slots // self._batch_size)
        while self._outstanding:
            self._limiter.settle(sum(self._outstanding.popleft().counts))
        self.observe(opened.totals, boot)

    def observe(self, totals: TableTotals, boot: bytes) -> None:
        """Take in a shard's report."""
        self.totals = totals
        self._limiter.observe(totals, boot)

    def plan(self, ready: int) -> DrawPlan | None:
        """The next request, if a batch is missing and the limiter allows it. ``ready`` batches wait for the learner."""
        if self._mirror is None or self.totals.num_items == 0:
            return None
        missing = self._depth.batches - ready - self.batches_in_flight
        batches = min(missing, self._depth.batches_per_request, self._batches_per_request)
        while batches > 0 and not self._limiter.may_draw(batches * self._batch_size):
            batches -= 1
        if batches <= 0:
            return None
        self._request_number += 1
        plan = DrawPlan(self._request_number, [self._batch_size] * batches)
        self._outstanding.append(plan)
        self._limiter.request(sum(plan.counts))
        return plan

    def withdraw(self, plan: DrawPlan) -> None:
        """The newest plan could not be sent; its number will be used again."""
        if self._outstanding and self._outstanding[-1] is plan:
            self._outstanding.pop()
            self._request_number -= 1
            self._limiter.settle(sum(plan.counts))

    def apply(self, drawn: DrawResult, boot: bytes) -> list[BatchBuffer]:
        """Mirror the reply's chunks and gather its windows into batches; hand them back to ``ring`` after use.

        Raises:
            SignatureError: the reply answers nothing, or a chunk does not decode. The stream must be closed, because
                the mirror no longer holds what the shard believes.
        """
        if self._mirror is None or not self._outstanding:
            raise SignatureError(f"draw reply {drawn.request_number}: nothing was asked for on this stream")
        plan = self._outstanding.popleft()
        if drawn.request_number != plan.request_number:
            raise SignatureError(f"draw.request_number is {drawn.request_number}, must be {plan.request_number}")
        for slot, chunk in zip(drawn.new_slots, drawn.new_chunks, strict=True):
            self._mirror.put(int(slot), chunk.rows, chunk.starts, chunk.blocks)
        self.chunks_received += len(drawn.new_chunks)
        self.observe(drawn.totals, boot)
        self._limiter.settle(sum(plan.counts))
        batches = []
        for begin in range(0, len(drawn.keys), self._batch_size):
            part = slice(begin, begin + self._batch_size)
            buffer = self.ring.acquire()
            self._mirror.gather(
                drawn.slots[part], drawn.start_rows[part], drawn.lengths[part], drawn.prefixes[part], buffer
            )
            buffer.weights[:] = importance_weights(drawn.probabilities[part], drawn.totals.num_items, self._exponent())
            buffer.keys[:] = drawn.keys[part]
            batches.append(buffer)
        return batches

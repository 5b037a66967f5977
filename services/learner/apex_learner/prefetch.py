"""The thread that keeps batches ready: plans draws, applies replies in order, hands batches to the trainer, and takes
them back with the new priorities of their items.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from apex_learner.assembler import BatchAssembler, DrawPlan
from apex_learner.readback import Learned
from apexrl.experience.batch import BatchBuffer
from apexrl.replay.limiter import SamplesPerInsertLimiter
from apexrl.telemetry.logging import get_logger
from apexrl.transport.errors import Closed
from apexrl.transport.sample_client import SampleClient, StreamOpened, StreamReply
from apexrl.types import SignatureError, TableTotals

log = get_logger(__name__)

#: The longest between two turns. Every turn takes the interpreter from the update for a moment.
TURN_SECONDS = 0.1
#: Insert limits are looked at at least this often, also while nothing may be drawn; sent when they have changed.
LIMITS_SECONDS = 0.2


@dataclass
class _Link:
    """The stream to one shard, as this thread has seen it."""

    client: SampleClient
    connection: int = 0
    """0 = none."""
    boot: bytes = b""
    limit: int | None = -1
    """The insert limit told last; -1 = none was."""
    requested: deque[float] = field(default_factory=deque)
    """When each unanswered request was sent."""


class Prefetcher:
    """Runs a :class:`BatchAssembler` against its shards.

    Args:
        clients: one per shard; each sets ``wake`` when something has come.
        table: name of the table.
        assembler: owned by this thread from now on.
        limiter: owned by this thread from now on.
        wake: set to end the wait between two turns.
        on_totals: called with shard, report and boot, on this thread.
        on_latency: called with a shard and the seconds from a request to its reply, on this thread.
    """

    def __init__(
        self,
        clients: Sequence[SampleClient],
        table: str,
        assembler: BatchAssembler,
        limiter: SamplesPerInsertLimiter,
        wake: threading.Event,
        on_totals: Callable[[int, TableTotals, bytes], None],
        on_latency: Callable[[int, float], None],
    ) -> None:
        self._links = [_Link(client) for client in clients]
        self._table = table
        self._assembler = assembler
        self._limiter = limiter
        self._wake = wake
        self._on_totals = on_totals
        self._on_latency = on_latency
        self._ready: queue.SimpleQueue[BatchBuffer] = queue.SimpleQueue()
        self._learned: deque[Learned] = deque()
        self._taken = 0
        self._stopping = threading.Event()
        self._limits_sent = 0.0
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()

    @property
    def num_ready(self) -> int:
        return self._ready.qsize()

    def next(self, timeout_seconds: float) -> BatchBuffer | None:
        """The next batch, or None after ``timeout_seconds``. Called by one thread.

        Raises:
            Fenced: a learner of a higher epoch has taken over.
        """
        try:
            batch = self._ready.get(timeout=timeout_seconds)
        except queue.Empty:
            if self._failure is not None:
                raise self._failure from None
            return None
        # With all batches ready no reply will come, and a fast learner has used them up before the next turn is due.
        self._taken += 1
        if self._taken >= self._assembler.batches_per_request:
            self._taken = 0
            self._wake.set()
        return batch

    def learned(self, batch: BatchBuffer, priorities: npt.NDArray[np.float32] | None) -> None:
        """Give a batch's memory back, and the new priorities [B] of its items, if any, to their shards.

        Both happen in the next turn, for all batches together: between two updates nothing of it is in the caches, and
        each small operation costs several times what it costs in a row.
        """
        self._learned.append(Learned(batch, priorities))

    def waiting(self) -> str | None:
        """What the learner waits for, in words; None if for nothing."""
        absences = [absence for link in self._links if (absence := link.client.waiting()) is not None]
        return "; ".join(absences) or self._limiter.waiting()

    def stop(self) -> None:
        self._stopping.set()
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._wake.wait(TURN_SECONDS)
                self._wake.clear()
                self._turn()
        except Closed:
            return
        except BaseException as error:
            self._failure = error

    def _turn(self) -> None:
        for shard, link in enumerate(self._links):
            if link.connection and link.client.info is None:
                link.connection = 0
                self._assembler.lost(shard)
            while (event := link.client.next_event(0.0)) is not None:
                self._handle(shard, link, event)
            self._take_totals(shard, link)
        self._send_limits()
        self._request()

    def _handle(self, shard: int, link: _Link, event: StreamOpened | StreamReply) -> None:
        if isinstance(event, StreamOpened):
            link.connection = event.connection
            link.boot = event.boot
            link.limit = -1
            link.requested.clear()
            self._assembler.open(shard, event.tables[self._table], event.boot)
            self._limits_sent = 0.0
            return
        if event.connection != link.connection:
            return
        self._on_latency(shard, time.monotonic() - link.requested.popleft())
        try:
            batches = self._assembler.apply(shard, event.result, link.boot)
        except SignatureError as error:
            log.warning("a draw reply cannot be applied; opening the stream anew", shard=shard, error=str(error))
            link.client.reconnect(str(error))
            link.connection = 0
            self._assembler.lost(shard)
            return
        for batch in batches:
            self._ready.put(batch)

    def _take_totals(self, shard: int, link: _Link) -> None:
        report = link.client.report(self._table)
        if link.connection and report is not None and report[0] == link.boot:
            self._assembler.observe(shard, report[1], link.boot)
            self._on_totals(shard, report[1], link.boot)

    def _send_limits(self) -> None:
        now = time.monotonic()
        if now - self._limits_sent < LIMITS_SECONDS:
            return
        self._limits_sent = now
        for link, limit in zip(self._links, self._limiter.insert_limits(), strict=True):
            if link.connection and link.limit != limit:
                link.limit = limit
                link.client.set_insert_limits({self._table: limit})

    def _give_back(self) -> None:
        """Send the priorities of what has been learned from, and free its memory."""
        done = [self._learned.popleft() for _ in range(len(self._learned))]
        told = [(batch, priorities) for batch, priorities in done if priorities is not None]
        if told:
            keys = np.concatenate([batch.keys for batch, _ in told])
            shards = np.concatenate([batch.shards for batch, _ in told])
            new = np.concatenate([priorities for _, priorities in told])
            for shard, link in enumerate(self._links):
                own = slice(None) if len(self._links) == 1 else shards == shard
                link.client.update_priorities(self._table, keys[own], new[own])
        for batch, _ in done:
            self._assembler.ring.release(batch)

    def _plan(self) -> list[DrawPlan]:
        # Counted before buffers are freed: what is learned from in between holds its buffer still, and counts as ready.
        ready = self._ready.qsize()
        self._give_back()
        return self._assembler.plan(ready)

    def _request(self) -> None:
        while plans := self._plan():
            self._limits_sent = 0.0
            refused = []
            for plan in plans:
                link = self._links[plan.shard]
                if link.client.request_draw(self._table, plan.request_number, plan.counts, link.connection):
                    link.requested.append(time.monotonic())
                else:
                    refused.append(plan)
            for plan in refused:
                self._assembler.withdraw(plan)
            if refused:
                return

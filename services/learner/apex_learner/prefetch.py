"""The thread that keeps batches ready: plans draws, applies replies in order, hands batches to the trainer."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable

from apex_learner.batches import DrawPipeline
from apexrl.experience.batch import BatchBuffer
from apexrl.replay.limiter import SamplesPerInsertLimiter
from apexrl.telemetry.logging import get_logger
from apexrl.transport.errors import Closed
from apexrl.transport.sample_client import SampleClient, StreamOpened
from apexrl.types import SignatureError, TableTotals

log = get_logger(__name__)

#: The longest that a freed place in the ring, or a new report of totals, waits to be noticed.
TURN_SECONDS = 0.02
#: Insert limits are sent at least this often, also while nothing may be drawn.
LIMITS_SECONDS = 0.2


class Prefetcher:
    """Runs a :class:`DrawPipeline` against a shard.

    Args:
        client: the sample stream.
        table: name of the table.
        pipeline: owned by this thread from now on, but for its ring.
        limiter: owned by this thread from now on.
        on_totals: called with every report, on this thread.
        on_latency: called with the seconds from a request to its reply, on this thread.
    """

    def __init__(
        self,
        client: SampleClient,
        table: str,
        pipeline: DrawPipeline,
        limiter: SamplesPerInsertLimiter,
        on_totals: Callable[[TableTotals, bytes], None],
        on_latency: Callable[[float], None],
    ) -> None:
        self._client = client
        self._table = table
        self._pipeline = pipeline
        self._limiter = limiter
        self._on_totals = on_totals
        self._on_latency = on_latency
        self._requested: deque[float] = deque()
        self._ready: queue.Queue[BatchBuffer] = queue.Queue()
        self._stopping = threading.Event()
        self._connection = 0
        self._boot = b""
        self._limits_sent = 0.0
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()

    @property
    def num_ready(self) -> int:
        return self._ready.qsize()

    def next(self, timeout_seconds: float) -> BatchBuffer | None:
        """The next batch, or None after ``timeout_seconds``.

        Raises:
            Fenced: a learner of a higher epoch has taken over.
        """
        try:
            return self._ready.get(timeout=timeout_seconds)
        except queue.Empty:
            if self._failure is not None:
                raise self._failure from None
            return None

    def release(self, batch: BatchBuffer) -> None:
        """Give a batch's memory back."""
        self._pipeline.ring.release(batch)

    def waiting(self) -> str | None:
        """What the learner waits for, in words; None if for nothing."""
        return self._client.waiting() or self._limiter.waiting()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._turn()
        except Closed:
            return
        except BaseException as error:
            self._failure = error

    def _turn(self) -> None:
        event = self._client.next_event(TURN_SECONDS)
        if isinstance(event, StreamOpened):
            self._connection = event.connection
            self._boot = event.boot
            self._requested.clear()
            self._pipeline.open(event.tables[self._table], event.boot)
            self._limits_sent = 0.0
        elif event is not None:
            self._on_latency(time.monotonic() - self._requested.popleft())
            try:
                batches = self._pipeline.apply(event.result, self._boot)
            except SignatureError as error:
                log.warning("a draw reply cannot be applied; opening the stream anew", error=str(error))
                self._client.reconnect(str(error))
                return
            for batch in batches:
                self._ready.put(batch)
        if self._connection:
            self._take_totals()
            self._send_limits()
            self._request()

    def _take_totals(self) -> None:
        report = self._client.report(self._table)
        if report is not None and report[0] == self._boot:
            self._pipeline.observe(report[1], self._boot)
            self._on_totals(report[1], self._boot)

    def _send_limits(self) -> None:
        now = time.monotonic()
        if now - self._limits_sent >= LIMITS_SECONDS:
            self._client.set_insert_limits({self._table: self._limiter.insert_limits()[0]})
            self._limits_sent = now

    def _request(self) -> None:
        while (plan := self._pipeline.plan(self._ready.qsize())) is not None:
            if not self._client.request_draw(self._table, plan.request_number, plan.counts, self._connection):
                self._pipeline.withdraw(plan)
                return
            self._requested.append(time.monotonic())
            self._limits_sent = 0.0

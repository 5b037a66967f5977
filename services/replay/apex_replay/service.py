"""A running shard: engine, its thread, the gRPC server, and the metrics of all three."""

from __future__ import annotations

import contextlib

from apex_replay.endpoint import ReplayEndpoint
from apex_replay.journal import Journal
from apex_replay.servicer import SERVICE_NAME, ReplayServicer
from apexrl.replay.engine import EngineInfo, ReplayEngine
from apexrl.replay.engine_thread import EngineStoppedError, EngineThread
from apexrl.telemetry.metrics import ReplayMetrics
from apexrl.transport.channel import REPLAY_LIMITS
from apexrl.transport.errors import RefusalKind
from apexrl.transport.handlers import CallObserver
from apexrl.transport.io_thread import io_thread
from apexrl.transport.server import RunningServer, start_server

STOP_GRACE_SECONDS = 1.0

#: Refusals by what the metric's label calls them. A message above the size limit never gets past grpc.
_REASONS = {
    RefusalKind.MALFORMED: "malformed",
    RefusalKind.EMPTY: "malformed",
    RefusalKind.FENCED: "epoch",
}


class ReplayService:
    """Starts listening at once.

    Args:
        listen: HOST:PORT; port 0 = any free one.
        journal: what it holds is recovered first; closed with the service.
        calls: is told of every call.
        first_items: how many more items each table takes until a learner has told its insert limit; None = any number.

    Raises:
        ListenError: the address cannot be bound.
    """

    def __init__(
        self,
        listen: str,
        journal: Journal | None = None,
        calls: CallObserver | None = None,
        first_items: int | None = None,
    ) -> None:
        self._engine = ReplayEngine()
        self._journal = journal
        self._endpoint = ReplayEndpoint(self._engine, journal=journal)
        if first_items is not None:
            self._engine.hold_inserts(first_items)
        self._thread = EngineThread(self._engine)
        self._io = io_thread()
        self._stopped = False
        try:
            self._servicer, self._server = self._io.run(self._start(listen, calls))
        except BaseException:
            self._thread.stop()
            raise

    @property
    def address(self) -> str:
        """HOST:PORT as bound."""
        return self._server.address

    @property
    def is_alive(self) -> bool:
        """Whether the engine still runs; without it the shard is of no use."""
        return self._thread.is_alive

    def export(self, metrics: ReplayMetrics) -> None:
        """Bring ``metrics`` up to date."""
        try:
            info, inserts, samples, applied, refusals = self._thread.submit(self._collect).result()
        except EngineStoppedError:
            return
        for table in info.tables:
            metrics.observe_table(
                table.config.name,
                num_items=table.totals.num_items,
                capacity_items=table.config.capacity_items,
                block_bytes=table.block_bytes,
                slab_bytes=table.slab_bytes,
                mass=table.totals.mass,
                max_priority=table.max_priority,
                inserted=table.totals.inserted,
                drawn=table.totals.drawn,
                evicted=table.evicted,
                updates_applied=applied.get(table.config.name, 0),
                updates_stale=table.stale_updates,
                duplicates=table.duplicates,
            )
        for reason in ("malformed", "handshake", "epoch"):
            metrics.follow(metrics.rejected, refusals.get(reason, 0), reason)
        metrics.learner_epoch.set(info.learner_epoch)
        metrics.insert_streams.set(inserts)
        metrics.sample_streams.set(samples)
        metrics.engine_queue_commands.set(self._thread.depth)
        if self._journal is not None:
            metrics.follow(metrics.journal_bytes, self._journal.bytes_written)
            metrics.follow(metrics.journal_dropped, self._journal.records_dropped)
            metrics.journal_failing.set(0 if self._journal.failure is None else 1)

    def tick(self) -> None:
        """Housekeeping of the journal, to be called every second or so."""
        with contextlib.suppress(EngineStoppedError):
            self._thread.submit(lambda _: self._endpoint.tick()).result()

    def waiting(self) -> list[str]:
        """What the shard waits for, one line each."""
        try:
            return self._thread.submit(lambda _: self._endpoint.waiting()).result()
        except EngineStoppedError:
            return ["the engine has stopped"]

    def stop(self, grace_seconds: float = STOP_GRACE_SECONDS) -> None:
        """Report not ready, end all streams, finish running calls, and free the port. May be called again."""
        if self._stopped:
            return
        self._stopped = True
        self._io.run(self._stop(grace_seconds))
        self._thread.stop()

    async def _start(self, listen: str, calls: CallObserver | None) -> tuple[ReplayServicer, RunningServer]:
        servicer = ReplayServicer(self._endpoint, self._thread)
        server = await start_server(listen, [servicer.register()], REPLAY_LIMITS, services=(SERVICE_NAME,), calls=calls)
        return servicer, server

    async def _stop(self, grace_seconds: float) -> None:
        await self._server.set_serving(False)
        await self._servicer.stop()
        await self._server.stop(grace_seconds)

    def _collect(self, engine: ReplayEngine) -> tuple[EngineInfo, int, int, dict[str, int], dict[str, int]]:
        refusals: dict[str, int] = {}
        for kind, count in self._endpoint.refusals.items():
            reason = _REASONS.get(kind, "handshake")
            refusals[reason] = refusals.get(reason, 0) + count
        endpoint = self._endpoint
        return engine.info(), endpoint.insert_streams, endpoint.sample_streams, dict(endpoint.updates_applied), refusals

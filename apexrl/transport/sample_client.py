"""The learner's way into a replay shard: draws in order, totals, insert limits and new priorities."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import grpc
import numpy as np
import numpy.typing as npt

from apexrl.transport import replay_pb2 as pb
from apexrl.transport import security, wire
from apexrl.transport._generated.apex.v1.replay_pb2_grpc import ReplayStub
from apexrl.transport.channel import REPLAY_LIMITS
from apexrl.transport.errors import Closed, Fenced
from apexrl.transport.handshake import Handshake
from apexrl.transport.io_thread import io_thread
from apexrl.transport.priority_sender import PrioritySender
from apexrl.transport.reconnect import OPEN_TIMEOUT_SECONDS, StreamKeeper, read_response
from apexrl.transport.sample_events import (
    NO_LIMIT,
    LearnerIdentity,
    OpenedTable,
    StreamOpened,
    StreamReply,
    opened_tables,
)
from apexrl.types import Signature, SignatureError, TableConfig, TableTotals

__all__ = ["NO_LIMIT", "LearnerIdentity", "OpenedTable", "SampleClient", "StreamOpened", "StreamReply"]

logger = logging.getLogger(__name__)

#: Draw requests without an answer; bounds what may wait here to be applied.
MAX_OUTSTANDING = 256

SampleCall = grpc.aio.StreamStreamCall[pb.SampleRequest, pb.SampleResponse]
#: Called on the I/O thread with the shard's boot and the newest totals of some of its tables; must be quick.
TotalsCallback = Callable[[bytes, dict[str, TableTotals]], None]


class _RawReply(NamedTuple):
    connection: int
    message: pb.DrawReply


class SampleClient:
    """Draws from the tables of one shard, as the one learner of a run.

    Keeps a stream open for ever. What happens is told in order by :meth:`next_event`: first a :class:`StreamOpened`,
    then a :class:`StreamReply` per draw request, and a new :class:`StreamOpened` whenever the stream had to be opened
    again. Everything else may be called from any thread as well.

    Args:
        address: HOST:PORT of the shard.
        handshake: of this learner.
        identity: of this learner.
        tables: to draw from.
        run_seed: seeds the draws, together with the table's name and the request number.
        mirror_slots: pages that the mirror of each table has room for; 0 = all of them.
        discard_other_run: drop experience of another run that the shard may hold; without it such a shard refuses.
        on_totals: called with every report of totals.
    """

    def __init__(
        self,
        address: str,
        handshake: Handshake,
        identity: LearnerIdentity,
        tables: Sequence[TableConfig],
        run_seed: int,
        *,
        mirror_slots: int = 0,
        discard_other_run: bool = False,
        on_totals: TotalsCallback | None = None,
    ) -> None:
        self.address = address
        self._handshake = handshake
        self._identity = identity
        self._tables = {table.name: table for table in tables}
        self._run_seed = run_seed
        self._mirror_slots = mirror_slots
        self._discard_other_run = discard_other_run
        self._on_totals = on_totals
        self._condition = threading.Condition()
        self._events: deque[StreamOpened | _RawReply] = deque()
        self._outstanding: deque[tuple[str, int]] = deque()
        self._limits: dict[str, int] = {}
        self._totals: dict[str, TableTotals] = {}
        self._info: StreamOpened | None = None
        self._connection = 0
        self._boot = b""
        self._told_boot = b""
        self._closed = False
        self._fenced: Fenced | None = None
        self._requests: asyncio.Queue[pb.SampleRequest | str] | None = None
        self._io = io_thread()
        self._keeper = StreamKeeper(f"replay shard {address}", address, REPLAY_LIMITS, self._stream, self.waiting)
        self._updates = PrioritySender(address, identity.to_proto(), self._on_fenced)
        self._task = self._io.submit(self._run())

    # --- state ---

    @property
    def info(self) -> StreamOpened | None:
        """The current stream; None while there is none."""
        return self._info

    @property
    def refusal(self) -> str | None:
        """Why the shard refuses this learner, in its words; None while it does not."""
        return self._keeper.refusal

    @property
    def fenced(self) -> Fenced | None:
        """Set once a learner of a higher epoch has taken over; every call then raises it."""
        return self._fenced

    @property
    def updates(self) -> PrioritySender:
        """Counters of priority updates."""
        return self._updates

    @property
    def outstanding(self) -> int:
        """Draw requests of the current stream without an answer."""
        with self._condition:
            return len(self._outstanding)

    def totals(self, table: str) -> TableTotals | None:
        """The newest report about a table; None before the first."""
        with self._condition:
            return self._totals.get(table)

    def report(self, table: str) -> tuple[bytes, TableTotals] | None:
        """The newest report about a table, with the boot whose counters it gives; None before the first."""
        with self._condition:
            totals = self._totals.get(table)
            return None if totals is None else (self._boot, totals)

    def wait_opened(self, timeout: float | None = None) -> StreamOpened | None:
        """The current stream, waited for if need be; None if ``timeout`` seconds passed."""
        with self._condition:
            self._condition.wait_for(lambda: self._stopped() or self._info is not None, timeout)
            self._raise_if_stopped()
            return self._info

    def waiting(self) -> str | None:
        """What this client waits for, in words; None if for nothing."""
        return self._keeper.describe_absence()

    # --- calls ---

    def next_event(self, timeout: float | None = None) -> StreamOpened | StreamReply | None:
        """The next thing that happened, in order; None if ``timeout`` seconds passed.

        Raises:
            Fenced: a learner of a higher epoch has taken over.
            Closed: the client was closed.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            with self._condition:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                self._condition.wait_for(lambda: self._stopped() or bool(self._events), left)
                self._raise_if_stopped()
                if not self._events:
                    return None
                event = self._events.popleft()
                if event.connection != self._connection:
                    continue  # A stream that is gone already; its replies must not reach the new mirror.
                info = self._info
            if isinstance(event, StreamOpened):
                new_boot, self._told_boot = event.boot != self._told_boot, event.boot
                return event._replace(new_boot=new_boot)
            if info is None:
                continue
            try:
                return StreamReply(event.connection, self._decode(info, event.message))
            except SignatureError as error:
                self.reconnect(f"malformed reply: {error}")

    def request_draw(
        self, table: str, request_number: int, counts: npt.ArrayLike, connection: int | None = None
    ) -> bool:
        """Ask for sum(counts) items in batches of ``counts`` [m].

        Args:
            table: to draw from.
            request_number: seeds the draw; counts up by one per table.
            counts: items of each batch.
            connection: the stream that the caller believes in; another one gives False.

        Returns:
            Whether the request was taken: False without a stream, or with too many unanswered requests.
        """
        request = pb.DrawRequest(table=table, request_number=request_number, counts=wire.to_bytes(counts, "uint32"))
        if table not in self._tables:
            raise KeyError(f"table {table!r} is not among {sorted(self._tables)}")
        wire.counts_from_bytes(request.counts)
        with self._condition:
            self._raise_if_stopped()
            if self._info is None or (connection is not None and connection != self._connection):
                return False
            if len(self._outstanding) >= MAX_OUTSTANDING:
                return False
            self._outstanding.append((table, request_number))
            self._send(pb.SampleRequest(draw=request))
            return True

    def set_insert_limits(self, limits: Mapping[str, int | None]) -> None:
        """How far each table's ``inserted`` may grow; None = no limit. Kept for the shard's life, resent if need be."""
        with self._condition:
            self._raise_if_stopped()
            self._limits.update({table: NO_LIMIT if limit is None else limit for table, limit in limits.items()})
            if self._info is not None:
                self._send(self._limits_request())

    def update_priorities(self, table: str, keys: npt.NDArray[np.uint64], priorities: npt.NDArray[np.float32]) -> None:
        """Set raw priorities by key. Returns at once; goes out within 100 ms, of a key set twice the later wins.

        Raises:
            ValueError: priorities are negative or not finite, or not as many as keys.
        """
        with self._condition:
            self._raise_if_stopped()
        self._updates.put(table, keys, priorities)

    def reconnect(self, reason: str) -> None:
        """Give up the current stream, e.g. because a chunk could not be decoded; a new one begins with no mirror."""
        with self._condition:
            if self._requests is not None:
                self._io.loop.call_soon_threadsafe(self._requests.put_nowait, reason)
                self._requests = None
            self._info = None

    def close(self) -> None:
        """Stop. Calls that wait raise :class:`Closed`."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        self._updates.close()
        self._task.cancel()

    # --- with the lock ---

    def _stopped(self) -> bool:
        return self._closed or self._fenced is not None

    def _raise_if_stopped(self) -> None:
        if self._fenced is not None:
            raise self._fenced
        if self._closed:
            raise Closed(f"sample client of {self.address} is closed")

    def _send(self, request: pb.SampleRequest) -> None:
        if self._requests is not None:
            self._io.loop.call_soon_threadsafe(self._requests.put_nowait, request)

    def _limits_request(self) -> pb.SampleRequest:
        limits = [pb.InsertLimit(table=table, inserted=limit) for table, limit in self._limits.items()]
        return pb.SampleRequest(limits=pb.InsertLimits(limits=limits))

    def _decode(self, info: StreamOpened, message: pb.DrawReply) -> wire.DrawResult:
        signature: Signature = self._tables[message.table].signature
        return wire.draw_from_proto(signature, info.tables[message.table].mirror_slots, message)

    def _on_fenced(self, error: Fenced) -> None:
        with self._condition:
            self._fenced = self._fenced or error
            self._condition.notify_all()

    # --- on the loop ---

    async def _run(self) -> None:
        try:
            await self._keeper.run()
        except Fenced as error:
            logger.error("replay shard %s obeys another learner: %s", self.address, error)
            self._on_fenced(error)
        finally:
            with self._condition:
                self._closed = True
                self._condition.notify_all()

    def _open_request(self) -> pb.SampleRequest:
        tables = [
            pb.MirroredTable(table=wire.table_config_to_proto(table), mirror_slots=self._mirror_slots)
            for table in self._tables.values()
        ]
        return pb.SampleRequest(
            open=pb.SampleOpen(
                handshake=self._handshake.to_proto(),
                learner=self._identity.to_proto(),
                tables=tables,
                run_seed=self._run_seed,
                discard_other_run=self._discard_other_run,
            )
        )

    async def _stream(self, channel: grpc.aio.Channel) -> None:
        call: SampleCall = ReplayStub(channel).Sample(metadata=security.current().metadata)  # type: ignore[call-arg]
        try:
            await call.write(self._open_request())
            response = await read_response(call, pb.SampleResponse, OPEN_TIMEOUT_SECONDS)
            requests = self._opened(response.opened)
            self._keeper.opened()
            self._keeper.progressed()
            reader = asyncio.create_task(self._read(call))
            writer = asyncio.create_task(self._write(call, requests))
            try:
                done, _ = await asyncio.wait((reader, writer), return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in (reader, writer):
                    task.cancel()
                await asyncio.gather(reader, writer, return_exceptions=True)
        finally:
            call.cancel()
            with self._condition:
                self._info = self._requests = None
                self._outstanding.clear()

    def _opened(self, message: pb.SampleOpened) -> asyncio.Queue[pb.SampleRequest | str]:
        tables = opened_tables(message)
        if missing := set(self._tables) - set(tables):
            raise ConnectionError(f"the shard opened no table {sorted(missing)}")
        requests: asyncio.Queue[pb.SampleRequest | str] = asyncio.Queue()
        with self._condition:
            new_boot = message.boot != self._boot
            if new_boot:
                # Limits are in terms of counters that began anew, keys belong to items that are gone.
                self._limits.clear()
                self._updates.clear()
            self._connection += 1
            self._boot = message.boot
            self._requests = requests
            self._outstanding.clear()
            self._info = StreamOpened(self._connection, message.boot, new_boot, tables)
            self._totals = {name: table.totals for name, table in tables.items()}
            self._events.clear()
            self._events.append(self._info)
            if self._limits:
                requests.put_nowait(self._limits_request())
        self._note_totals(self._totals)
        return requests

    async def _write(self, call: SampleCall, requests: asyncio.Queue[pb.SampleRequest | str]) -> None:
        while True:
            request = await requests.get()
            if isinstance(request, str):
                raise ConnectionError(request)
            try:
                await call.write(request)
            except asyncio.InvalidStateError:
                # The stream has ended; the reader learns why.
                await asyncio.Event().wait()

    async def _read(self, call: SampleCall) -> None:
        while True:
            response = await read_response(call, pb.SampleResponse)
            if response.HasField("draw"):
                self._on_draw(response.draw)
            elif response.HasField("totals"):
                self._note_totals({t.table: wire.totals_from_proto(t) for t in response.totals.tables})

    def _on_draw(self, message: pb.DrawReply) -> None:
        with self._condition:
            expected = self._outstanding.popleft() if self._outstanding else None
            if expected != (message.table, message.request_number):
                raise ConnectionError(
                    f"a reply to request {message.request_number} of {message.table!r} came, {expected} was expected"
                )
            self._events.append(_RawReply(self._connection, message))
            # Whoever takes the reply finds totals no older than it.
            self._totals[message.table] = wire.totals_from_proto(message.totals)
        self._note_totals({message.table: self._totals[message.table]})

    def _note_totals(self, totals: dict[str, TableTotals]) -> None:
        with self._condition:
            self._totals.update(totals)
            boot = self._boot
            self._condition.notify_all()
        if self._on_totals is not None:
            self._on_totals(boot, totals)

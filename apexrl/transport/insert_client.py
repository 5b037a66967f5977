"""The actor's way into a replay shard: a bounded window of chunks, sent in the background, until acknowledged."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence

import grpc

from apexrl.transport import replay_pb2 as pb
from apexrl.transport import security
from apexrl.transport._generated.apex.v1.replay_pb2_grpc import ReplayStub
from apexrl.transport.blocked_time import BlockedTime
from apexrl.transport.channel import REPLAY_LIMITS
from apexrl.transport.errors import Closed
from apexrl.transport.handshake import Handshake
from apexrl.transport.insert_session import InsertSession
from apexrl.transport.io_thread import io_thread
from apexrl.transport.reconnect import OPEN_TIMEOUT_SECONDS, StreamKeeper, read_response
from apexrl.types import Chunk, TableConfig

InsertCall = grpc.aio.StreamStreamCall[pb.InsertRequest, pb.InsertResponse]


class InsertClient:
    """Sends chunks of one table to one shard and repeats what was not acknowledged, whatever happens to the shard.

    A shard that cannot be reached or that refuses the handshake is tried again for ever, after 0.2 s at first, then
    up to 15 s; meanwhile :meth:`put` blocks once the window is full. :attr:`refusal` says why a shard refuses.

    All methods may be called from any thread.

    Args:
        address: HOST:PORT of the shard.
        handshake: of this process, or a function that gives the current one (read at every attempt, because an actor
            outlives a learner's run).
        table: where the chunks go.
        max_unacked_chunks: size of the window.
        condition: notified when a stream has opened or there may be room, shared with other clients; one of its own
            by default.
        connection: see :func:`~apexrl.transport.channel.open_channel`.
    """

    def __init__(
        self,
        address: str,
        handshake: Handshake | Callable[[], Handshake],
        table: TableConfig,
        max_unacked_chunks: int,
        *,
        condition: threading.Condition | None = None,
        connection: str = "",
    ) -> None:
        self.address = address
        self._handshake = handshake
        self._condition = condition or threading.Condition()
        self._session = InsertSession(table, max_unacked_chunks)
        self._flushing = 0
        self._closed = False
        self._keeper = StreamKeeper(
            f"replay shard {address}", address, REPLAY_LIMITS, self._stream, self.waiting, connection
        )
        self._blocked = BlockedTime(self._condition)
        self._io = io_thread()
        self._wake = asyncio.Event()
        self._task = self._io.submit(self._run())

    @property
    def incarnation(self) -> bytes:
        """16 random bytes of this client, under which its chunks are numbered."""
        return self._session.incarnation

    @property
    def refusal(self) -> str | None:
        """Why the shard refuses this peer, in its words; None while it does not."""
        return self._keeper.refusal

    @property
    def connected(self) -> bool:
        with self._condition:
            return self._session.is_open

    @property
    def room(self) -> int:
        """Chunks that may be put without waiting."""
        with self._condition:
            return self._session.room

    @property
    def unacked(self) -> int:
        """Chunks taken and not acknowledged."""
        with self._condition:
            return self._session.unacked

    @property
    def acked(self) -> int:
        """Highest chunk number acknowledged, that is the number of chunks safely handed over."""
        with self._condition:
            return self._session.last_acked

    @property
    def chunks_resent(self) -> int:
        with self._condition:
            return self._session.chunks_resent

    @property
    def blocked_seconds(self) -> float:
        """Seconds that :meth:`put` has waited for the window, ever, the current wait included."""
        with self._condition:
            return self._blocked.seconds

    def put(self, chunks: Sequence[Chunk], timeout: float | None = None) -> int:
        """Hand over chunks; blocks while the window is full.

        Returns:
            How many were taken: all of them, or fewer if ``timeout`` seconds passed; the first ones in any case.

        Raises:
            Closed: the client was closed.
            ValueError: a chunk is larger than a message may be.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._condition:
            for taken, chunk in enumerate(chunks):
                if not self._wait_for_room(deadline):
                    return taken
                self._session.put(chunk)
                if self._session.needs_attention:
                    self._wake_up()
        return len(chunks)

    def flush(self, timeout: float | None = None) -> bool:
        """Send everything now and wait until it is acknowledged; False if ``timeout`` seconds passed before."""
        with self._condition:
            self._flushing += 1
            self._wake_up()
            try:
                self._condition.wait_for(lambda: self._closed or not self._session.unacked, timeout)
                return not self._session.unacked
            finally:
                self._flushing -= 1

    def close(self) -> None:
        """Stop; what was not acknowledged is given up. Calls that wait raise :class:`Closed`."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        self._task.cancel()

    def waiting(self) -> str | None:
        """What this client waits for, in words; None if for nothing."""
        with self._condition:
            unacked, room = self._session.unacked, self._session.room
            blocked = self._blocked.current
        absence = self._keeper.describe_absence()
        if absence is not None:
            return f"{absence}; {unacked} chunks wait"
        if room < 1 and blocked is not None:
            return f"replay shard {self.address} takes no more chunks for {blocked:.0f} s; {unacked} unacknowledged"
        return None

    def _wait_for_room(self, deadline: float | None) -> bool:
        """With the lock: True when a chunk may be put, False at the deadline."""
        if self._closed:
            raise Closed(f"insert client of {self.address} is closed")
        if self._session.room > 0:
            return True
        self._blocked.wait_for(lambda: self._closed or self._session.room > 0, deadline)
        if self._closed:
            raise Closed(f"insert client of {self.address} was closed while put() waited")
        return self._session.room > 0

    def _wake_up(self) -> None:
        self._io.loop.call_soon_threadsafe(self._wake.set)

    # --- on the loop ---

    async def _run(self) -> None:
        try:
            await self._keeper.run()
        finally:
            with self._condition:
                self._closed = True
                self._condition.notify_all()

    async def _stream(self, channel: grpc.aio.Channel) -> None:
        """One stream from open to its end, which is always an error."""
        handshake = self._handshake() if callable(self._handshake) else self._handshake
        call: InsertCall = ReplayStub(channel).Insert(metadata=security.current().metadata)  # type: ignore[call-arg]
        try:
            await call.write(self._session.open_request(handshake))
            await self._read_one(call, OPEN_TIMEOUT_SECONDS)
            self._keeper.opened()
            with self._condition:
                self._condition.notify_all()
            reader = asyncio.create_task(self._read(call))
            writer = asyncio.create_task(self._write(call))
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
                self._session.on_disconnected()

    async def _read_one(self, call: InsertCall, timeout: float | None = None) -> None:
        response = await read_response(call, pb.InsertResponse, timeout)
        with self._condition:
            acked = self._session.on_response(response)
            if acked:
                self._keeper.progressed()
                self._condition.notify_all()
        self._wake.set()

    async def _read(self, call: InsertCall) -> None:
        while True:
            await self._read_one(call)

    async def _write(self, call: InsertCall) -> None:
        while True:
            self._wake.clear()
            with self._condition:
                message = self._session.next_message(force=self._flushing > 0)
                wait = self._session.seconds_until_message()
            if message is not None:
                try:
                    await call.write(message)
                except asyncio.InvalidStateError:
                    # The stream has ended; the reader learns why.
                    await asyncio.Event().wait()
                continue
            try:
                async with asyncio.timeout(wait):
                    await self._wake.wait()
            except TimeoutError:
                continue

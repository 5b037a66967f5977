"""An actor's way into several replay shards."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from apexrl.transport.blocked_time import BlockedTime
from apexrl.transport.errors import Closed
from apexrl.transport.handshake import Handshake
from apexrl.transport.insert_client import InsertClient
from apexrl.types import Chunk, TableConfig

#: Streams that one actor keeps. Few hundred actors reach all shards anyhow, and each stream costs both sides.
MAX_STREAMS = 4


class InsertFleet:
    """Gives each chunk to the connected shard that has acknowledged most of what it was given.

    A chunk is given to one shard for good: a shard that went away may hold it, and would be asked for it again. All
    methods may be called from any thread.

    Args:
        addresses: HOST:PORT of every shard.
        handshake: of this process, or a function that gives the current one.
        table: where the chunks go.
        max_unacked_chunks: size of the window of each stream.
        first: which shard to begin with; actors with different numbers spread over the shards.
        connection: see :func:`~apexrl.transport.channel.open_channel`.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        handshake: Handshake | Callable[[], Handshake],
        table: TableConfig,
        max_unacked_chunks: int,
        first: int = 0,
        *,
        connection: str = "",
    ) -> None:
        count = min(len(addresses), MAX_STREAMS)
        chosen = [addresses[(first + i) % len(addresses)] for i in range(count)]
        self._condition = threading.Condition()
        self._clients = [
            InsertClient(
                address, handshake, table, max_unacked_chunks, condition=self._condition, connection=connection
            )
            for address in chosen
        ]
        self._closed = False
        self._blocked = BlockedTime(self._condition)

    @property
    def unacked(self) -> int:
        """Chunks taken and not acknowledged."""
        return sum(client.unacked for client in self._clients)

    @property
    def acked(self) -> int:
        """Chunks safely handed over."""
        return sum(client.acked for client in self._clients)

    @property
    def blocked_seconds(self) -> float:
        """Seconds that :meth:`put` has waited for a stream with room, ever, the current wait included."""
        with self._condition:
            return self._blocked.seconds

    def put(self, chunks: Sequence[Chunk], timeout: float | None = None) -> int:
        """Hand over chunks; blocks while no connected shard has room.

        Returns:
            How many were taken: all of them, or fewer if ``timeout`` seconds passed; the first ones in any case.

        Raises:
            Closed: the fleet was closed.
            ValueError: a chunk is larger than a message may be.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._condition:
            for taken, chunk in enumerate(chunks):
                client = self._wait_for_client(deadline)
                if client is None:
                    return taken
                client.put([chunk], timeout=0.0)
        return len(chunks)

    def flush(self, timeout: float | None = None) -> bool:
        """Send everything now and wait until it is acknowledged; False if ``timeout`` seconds passed before."""
        deadline = None if timeout is None else time.monotonic() + timeout
        done = True
        for client in self._clients:
            done &= client.flush(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return done

    def close(self) -> None:
        """Stop; what was not acknowledged is given up. Calls that wait raise :class:`Closed`."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        for client in self._clients:
            client.close()

    def _roomy(self) -> list[InsertClient]:
        return [client for client in self._clients if client.connected and client.room > 0]

    def _wait_for_client(self, deadline: float | None) -> InsertClient | None:
        """With the lock: the stream for the next chunk; None at the deadline."""
        if not self._closed and not self._roomy():
            self._blocked.wait_for(lambda: self._closed or bool(self._roomy()), deadline)
        if self._closed:
            raise Closed("the insert fleet is closed")
        # Where all keep up, in turn; a shard that was away gets more until it has had as many.
        return min(self._roomy(), key=lambda client: (client.unacked, client.acked), default=None)

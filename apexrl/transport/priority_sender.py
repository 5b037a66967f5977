"""New priorities on their way to a shard: gathered for 100 ms, sent in order, one message at a time."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import grpc
import numpy as np
import numpy.typing as npt

from apexrl.transport import replay_pb2 as pb
from apexrl.transport import security, wire
from apexrl.transport._generated.apex.v1.replay_pb2_grpc import ReplayStub
from apexrl.transport.channel import REPLAY_LIMITS, Backoff, RenewingChannel
from apexrl.transport.errors import Fenced, RefusalKind, describe, refusal_of
from apexrl.transport.io_thread import io_thread

if TYPE_CHECKING:
    from apexrl.transport._generated.apex.v1.replay_pb2_grpc import ReplayAsyncStub

logger = logging.getLogger(__name__)

#: Batches are drawn about 0.25 s before they are learned from, so this is no great age for a priority; every message
#: takes the interpreter from the update for a moment.
COALESCE_SECONDS = 0.1
CALL_TIMEOUT_SECONDS = 10.0
MAX_KEYS_PER_MESSAGE = 1 << 17
#: While the shard is away this many keys are kept, the newest ones.
MAX_WAITING_KEYS = 1 << 20


class _Update(NamedTuple):
    table: str
    keys: npt.NDArray[np.uint64]
    priorities: npt.NDArray[np.float32]


class PrioritySender:
    """Sends priority updates of one learner to one shard in the background.

    Updates are repeated while the shard is away (they are idempotent) and dropped, oldest first, beyond 2^20 keys.

    Args:
        address: HOST:PORT of the shard.
        identity: of the learner.
        on_fenced: called on the I/O thread when the shard obeys another learner; sending stops.
    """

    def __init__(self, address: str, identity: pb.LearnerIdentity, on_fenced: Callable[[Fenced], None]) -> None:
        self._address = address
        self._identity = identity
        self._on_fenced = on_fenced
        self._condition = threading.Condition()
        self._waiting: deque[_Update] = deque()
        self._waiting_keys = 0
        self._in_flight = False
        self.applied = 0
        """Keys whose priority was set, ever."""
        self.stale = 0
        """Keys whose item had left."""
        self.dropped = 0
        """Keys given up because the shard was away, or had started anew."""
        self._io = io_thread()
        self._wake = asyncio.Event()
        self._task = self._io.submit(self._run())

    def put(self, table: str, keys: npt.NDArray[np.uint64], priorities: npt.NDArray[np.float32]) -> None:
        """Take an update, a copy of the arrays; see :meth:`SampleClient.update_priorities`."""
        if keys.shape != priorities.shape or keys.ndim != 1:
            raise ValueError(f"priorities has shape {priorities.shape}, must be that of keys, {keys.shape}")
        if priorities.size and not (priorities.min() >= 0 and priorities.max() < np.inf):  # a NaN fails here too
            wrong = priorities[~(np.isfinite(priorities) & (priorities >= 0))]
            raise ValueError(f"priorities has {wrong[0]}, must be finite and >= 0")
        with self._condition:
            was_idle = not self._waiting
            for begin in range(0, len(keys), MAX_KEYS_PER_MESSAGE):
                part = slice(begin, begin + MAX_KEYS_PER_MESSAGE)
                update = _Update(table, keys[part].astype(np.uint64), priorities[part].astype(np.float32))
                self._waiting.append(update)
                self._waiting_keys += len(update.keys)
            while self._waiting_keys > MAX_WAITING_KEYS and len(self._waiting) > 1:
                self._drop_first()
        if was_idle and len(keys):
            self._io.loop.call_soon_threadsafe(self._wake.set)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until everything was answered; False if ``timeout`` seconds passed before."""
        with self._condition:
            return self._condition.wait_for(lambda: not self._waiting and not self._in_flight, timeout)

    def clear(self) -> None:
        """Drop what waits: the shard has started anew, its old keys mean nothing."""
        with self._condition:
            while self._waiting:
                self._drop_first()
            self._condition.notify_all()

    def close(self) -> None:
        """Stop sending."""
        self._task.cancel()

    def _drop_first(self) -> None:
        dropped = len(self._waiting.popleft().keys)
        self._waiting_keys -= dropped
        self.dropped += dropped

    # --- on the loop ---

    async def _run(self) -> None:
        channel = RenewingChannel(self._address, REPLAY_LIMITS)
        backoff = Backoff()
        try:
            while True:
                self._wake.clear()
                if not self._waiting:
                    await self._wake.wait()
                await asyncio.sleep(COALESCE_SECONDS)
                batch = self._take()
                if not batch:
                    continue
                try:
                    await self._send(ReplayStub(channel.current()), batch)
                    backoff.reset()
                except grpc.aio.AioRpcError as error:
                    self._failed(batch, error)
                    await asyncio.sleep(backoff.next())
                finally:
                    with self._condition:
                        self._in_flight = False
                        self._condition.notify_all()
        except Fenced as error:
            self._on_fenced(error)
        except Exception:
            logger.exception("sending priorities to %s failed", self._address)
            raise
        finally:
            await channel.close()

    def _take(self) -> list[_Update]:
        """The oldest updates of one table, as many as fit into a message, in order."""
        with self._condition:
            batch: list[_Update] = []
            keys = 0
            while self._waiting and self._waiting[0].table == (batch[0].table if batch else self._waiting[0].table):
                if batch and keys + len(self._waiting[0].keys) > MAX_KEYS_PER_MESSAGE:
                    break
                update = self._waiting.popleft()
                keys += len(update.keys)
                batch.append(update)
            self._waiting_keys -= keys
            self._in_flight = bool(batch)
            return batch

    async def _send(self, stub: ReplayAsyncStub, batch: list[_Update]) -> None:
        request = pb.UpdatePrioritiesRequest(
            learner=self._identity,
            table=batch[0].table,
            keys=wire.to_bytes(np.concatenate([update.keys for update in batch]), "uint64"),
            priorities=wire.to_bytes(np.concatenate([update.priorities for update in batch]), "float32"),
        )
        response = await stub.UpdatePriorities(
            request, timeout=CALL_TIMEOUT_SECONDS, metadata=security.current().metadata
        )
        self.applied += response.applied
        self.stale += response.stale

    def _failed(self, batch: list[_Update], error: grpc.aio.AioRpcError) -> None:
        kind = refusal_of(error)
        if kind is RefusalKind.FENCED:
            raise Fenced(error.details() or "a learner of a higher epoch was accepted") from error
        with self._condition:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                self._waiting.extendleft(reversed(batch))
                self._waiting_keys += sum(len(update.keys) for update in batch)
                return
            self.dropped += sum(len(update.keys) for update in batch)
        logger.warning("priority updates of %r were refused: %s", batch[0].table, describe(error))

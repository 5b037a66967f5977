"""Calls to the coordinator, repeated until it answers."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import grpc

from apexrl.transport import coordinator_pb2 as pb
from apexrl.transport import security
from apexrl.transport._generated.apex.v1.coordinator_pb2_grpc import CoordinatorStub
from apexrl.transport.channel import LEARNER_LIMITS, Backoff, RenewingChannel
from apexrl.transport.errors import Closed, describe, refusal_of
from apexrl.transport.handshake import Handshake
from apexrl.transport.io_thread import io_thread
from apexrl.transport.reconnect import report_waiting

if TYPE_CHECKING:
    from apexrl.transport._generated.apex.v1.coordinator_pb2_grpc import CoordinatorAsyncStub

logger = logging.getLogger(__name__)

CALL_TIMEOUT_SECONDS = 5.0

ResponseT = TypeVar("ResponseT")


class CoordinatorClient:
    """Speaks to the learner's coordinator. A learner that cannot be reached or that refuses is tried again for ever.

    Methods block and may be called from any thread.

    Args:
        address: HOST:PORT of the learner.
        handshake: of this process, or a function that gives the current one. None: only :meth:`get_status`.
        connection: see :func:`~apexrl.transport.channel.open_channel`.
    """

    def __init__(
        self, address: str, handshake: Handshake | Callable[[], Handshake] | None = None, *, connection: str = ""
    ) -> None:
        self.address = address
        self._connection = connection
        self._handshake = handshake
        self._condition = threading.Condition()
        self._closed = False
        self._failure: str | None = None
        self.refusal: str | None = None
        """Why the coordinator refuses this peer; None while it does not."""
        self._io = io_thread()
        self._channel: RenewingChannel | None = None
        self._calls: set[asyncio.Task[object]] = set()
        self._reporter = self._io.submit(report_waiting(self.waiting))

    def heartbeat(self, request: pb.HeartbeatRequest, timeout: float | None = None) -> pb.HeartbeatResponse:
        """Send a heartbeat until it is answered; the handshake is put in here.

        Raises:
            TimeoutError: no answer within ``timeout`` seconds.
            Closed: the client was closed.
        """

        async def call(stub: CoordinatorAsyncStub) -> pb.HeartbeatResponse:
            handshake = self._handshake() if callable(self._handshake) else self._handshake
            if handshake is None:
                raise ValueError("a heartbeat needs a handshake")
            request.handshake.CopyFrom(handshake.to_proto())
            return await stub.Heartbeat(request, timeout=CALL_TIMEOUT_SECONDS, metadata=security.current().metadata)

        return self._until_answered(call, timeout)

    def get_status(self, timeout: float | None = None) -> pb.GetStatusResponse:
        """How the run stands; see :meth:`heartbeat`."""

        async def call(stub: CoordinatorAsyncStub) -> pb.GetStatusResponse:
            return await stub.GetStatus(
                pb.GetStatusRequest(), timeout=CALL_TIMEOUT_SECONDS, metadata=security.current().metadata
            )

        return self._until_answered(call, timeout)

    def waiting(self) -> str | None:
        """What this client waits for, in words; None if for nothing."""
        if self.refusal is not None:
            return f"coordinator {self.address} refuses: {self.refusal}"
        if self._failure is not None:
            return f"coordinator {self.address} cannot be reached ({self._failure})"
        return None

    def close(self) -> None:
        """Stop. Calls that wait raise :class:`Closed`."""
        with self._condition:
            if self._closed:
                return
            self._closed = True
        self._reporter.cancel()
        self._io.submit(self._close())

    def _until_answered(
        self, call: Callable[[CoordinatorAsyncStub], Awaitable[ResponseT]], timeout: float | None
    ) -> ResponseT:
        with self._condition:
            if self._closed:
                raise Closed(f"coordinator client of {self.address} is closed")
        deadline = None if timeout is None else time.monotonic() + timeout
        return self._io.run(self._attempts(call, deadline))

    async def _attempts(
        self, call: Callable[[CoordinatorAsyncStub], Awaitable[ResponseT]], deadline: float | None
    ) -> ResponseT:
        if self._channel is None:
            self._channel = RenewingChannel(self.address, LEARNER_LIMITS, connection=self._connection)
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        backoff = Backoff()
        try:
            async with asyncio.timeout(None if deadline is None else max(0.0, deadline - time.monotonic())):
                while True:
                    try:
                        response = await call(CoordinatorStub(self._channel.current()))
                        self.refusal = self._failure = None
                        return response
                    except grpc.aio.AioRpcError as error:
                        self._note_failure(error)
                    await asyncio.sleep(backoff.next())
        except TimeoutError:
            raise TimeoutError(f"coordinator {self.address} gave no answer ({self._failure})") from None
        except asyncio.CancelledError:
            raise Closed(f"coordinator client of {self.address} was closed while a call waited") from None
        finally:
            self._calls.discard(task)

    def _note_failure(self, error: grpc.aio.AioRpcError) -> None:
        text = describe(error)
        refused = error.code() is not grpc.StatusCode.UNAVAILABLE and refusal_of(error) is not None
        if refused and self.refusal != text:
            logger.warning("coordinator %s refuses: %s", self.address, text)
        self.refusal = text if refused else None
        self._failure = text

    async def _close(self) -> None:
        for task in list(self._calls):
            task.cancel()
        if self._channel is not None:
            await self._channel.close()

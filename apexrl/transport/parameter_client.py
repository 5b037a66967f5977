"""Fetches parameters in the background, whenever asked to."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import cast

import grpc

from apexrl.transport import parameters_pb2 as pb
from apexrl.transport import security
from apexrl.transport._generated.apex.v1.parameters_pb2_grpc import ParametersStub
from apexrl.transport.channel import (
    FIRST_BACKOFF_SECONDS,
    LEARNER_LIMITS,
    LONGEST_BACKOFF_SECONDS,
    Backoff,
    RenewingChannel,
)
from apexrl.transport.errors import Closed, describe, refusal_of
from apexrl.transport.failover import Failover
from apexrl.transport.handshake import Handshake
from apexrl.transport.io_thread import io_thread
from apexrl.transport.parameter_messages import NotModified, ParameterAssembler, is_newer, version_to_proto
from apexrl.transport.reconnect import report_waiting
from apexrl.types import Parameters, ParameterVersion, SignatureError

logger = logging.getLogger(__name__)

#: Includes the wait for one's turn at the server. A server that is gone is noticed earlier, by its connection.
CALL_TIMEOUT_SECONDS = 120.0
#: The own looks come at the period give or take this share, so that a fleet does not ask at once.
POLL_JITTER = 0.2
#: Who looks by itself is no more of a burden to a service that fails than to one that answers, and the waits of relays
#: behind one another add up.
LONGEST_POLL_BACKOFF_SECONDS = 2.0


class ParameterClient:
    """Holds the newest parameters that it has seen and looks for newer ones when asked, or every ``poll_seconds``.

    The first fetch starts at once. A service that cannot be reached or that refuses is tried again for ever, the next
    of several addresses first. Methods may be called from any thread.

    Args:
        address: HOST:PORT of the learner or of a relay.
        handshake: of this process, or a function that gives the current one. Its run is replaced by the run of the
            parameters held, because that is what "newer" refers to.
        poll_seconds: look this often by itself, give or take 20 %; None = only after :meth:`request` or
            :meth:`get_if_newer`.
        fallbacks: HOST:PORT of services to turn to, in this order, while ``address`` does not answer.
        relay: parameters are handed on, not read: the handshake's configuration is not compared, and that of the run
            comes with the parameters.
        keep_payload: False = payloads are received, checked and thrown away: for a process that stands for many.
        connection: see :func:`~apexrl.transport.channel.open_channel`.
        on_newer: called with new parameters, on the loop's thread, where it must not block.
    """

    def __init__(
        self,
        address: str,
        handshake: Handshake | Callable[[], Handshake],
        poll_seconds: float | None = None,
        *,
        fallbacks: Sequence[str] = (),
        relay: bool = False,
        keep_payload: bool = True,
        connection: str = "",
        on_newer: Callable[[Parameters], None] = lambda parameters: None,
    ) -> None:
        self.address = address
        """HOST:PORT asked last."""
        self._failover = Failover([address, *fallbacks])
        self._handshake = handshake
        self._poll_seconds = poll_seconds
        self._relay = relay
        self._keep_payload = keep_payload
        self._connection = connection
        self._on_newer = on_newer
        self._condition = threading.Condition()
        self._newest: Parameters | None = None
        self._closed = False
        self._failure: str | None = None
        self._failed_address = ""
        self.refusal: str | None = None
        """Why the service refuses this peer; None while it does not."""
        self.fetches = 0
        """Fetches that brought new parameters."""
        self.fetched_bytes = 0
        self.last_fetch_seconds = 0.0
        """Time of the last fetch that brought new parameters."""
        self._io = io_thread()
        self._wake = asyncio.Event()
        self._wake.set()
        self._task = self._io.submit(self._run())

    @property
    def newest(self) -> Parameters | None:
        """The newest parameters seen."""
        return self._newest

    def request(self) -> None:
        """Look for newer parameters in the background; does nothing while a look is under way."""
        self._io.loop.call_soon_threadsafe(self._wake.set)

    def get_if_newer(self, version: ParameterVersion | None, run_id: str = "") -> Parameters | None:
        """What is held if it is newer than ``version`` of run ``run_id``, else None. Looks for newer in the background.

        Never blocks: a fetch that this call starts serves a later one.
        """
        self.request()
        newest = self._newest
        return newest if newest is not None and is_newer(newest, version, run_id) else None

    def wait_newer(
        self, version: ParameterVersion | None, run_id: str = "", timeout: float | None = None
    ) -> Parameters | None:
        """Like :meth:`get_if_newer`, but waits; None if ``timeout`` seconds passed.

        Raises:
            Closed: the client was closed.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            found = self.get_if_newer(version, run_id)
            if found is not None:
                return found
            left = 0.25 if deadline is None else min(0.25, deadline - time.monotonic())
            with self._condition:
                if self._closed:
                    raise Closed(f"parameter client of {self.address} is closed")
                if left <= 0:
                    return None
                self._condition.wait(left)

    def waiting(self) -> str | None:
        """What this client waits for, in words; None if for nothing."""
        if self.refusal is not None:
            return f"parameter service {self._failed_address} refuses: {self.refusal}"
        if self._failure is not None:
            return f"parameter service {self._failed_address} gives no parameters ({self._failure})"
        return None

    def close(self) -> None:
        """Stop. Calls that wait raise :class:`Closed`."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        self._task.cancel()

    # --- on the loop ---

    async def _run(self) -> None:
        longest = LONGEST_BACKOFF_SECONDS if self._poll_seconds is None else LONGEST_POLL_BACKOFF_SECONDS
        backoff = Backoff(longest=longest)
        reporter = asyncio.create_task(report_waiting(self.waiting))
        channel = RenewingChannel(self.address, LEARNER_LIMITS, longest, connection=self._connection)
        try:
            while True:
                await self._until_due()
                address = self._failover.choose()
                try:
                    if address != self.address:
                        former = channel
                        channel = RenewingChannel(address, LEARNER_LIMITS, longest, connection=self._connection)
                        self.address = address
                        await former.close()
                    await self._fetch(ParametersStub(channel.current()))
                    backoff.reset()
                    self.refusal = self._failure = None
                except Exception as error:
                    if not isinstance(error, (grpc.aio.AioRpcError, SignatureError)):
                        logger.exception("fetching parameters from %s failed", self.address)
                    self._note_failure(error)
                    self._wake.set()
                    # The next address may be well: only after a round of failures the waits grow.
                    hurry = random.uniform(0.0, FIRST_BACKOFF_SECONDS)
                    await asyncio.sleep(backoff.next() if self._failover.failed() else hurry)
        finally:
            reporter.cancel()
            await channel.close()

    async def _until_due(self) -> None:
        """Wait until somebody asks for a look, or the next own one is due."""
        period = self._poll_seconds
        if period is not None:
            period *= random.uniform(1.0 - POLL_JITTER, 1.0 + POLL_JITTER)
        try:
            async with asyncio.timeout(period):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    async def _fetch(self, stub: ParametersStub) -> None:
        started = time.monotonic()
        handshake = self._handshake() if callable(self._handshake) else self._handshake
        request = pb.GetParametersRequest(relay=self._relay)
        held = self._newest
        if held is not None:
            handshake = dataclasses.replace(handshake, run_id=held.run_id)
            request.if_newer_than.CopyFrom(version_to_proto(held.version))
        request.handshake.CopyFrom(handshake.to_proto())
        assembler = ParameterAssembler()
        call = cast(
            "AsyncIterator[pb.GetParametersResponse]",
            stub.GetParameters(request, timeout=CALL_TIMEOUT_SECONDS, metadata=security.current().metadata),
        )
        async for response in call:
            result = assembler.feed(response)
            if isinstance(result, NotModified):
                return
            if result is not None:
                if self._relay and not result.shared_config_json:
                    raise SignatureError("parameters.header.shared_config_json is empty, must be there for a relay")
                self._take(result, time.monotonic() - started)
                return
        raise SignatureError("parameters: the stream ended before the payload was complete")

    def _take(self, parameters: Parameters, seconds: float) -> None:
        with self._condition:
            self._newest = parameters if self._keep_payload else dataclasses.replace(parameters, payload=b"")
            self.fetches += 1
            self.fetched_bytes += len(parameters.payload)
            self.last_fetch_seconds = seconds
            self._condition.notify_all()
        self._on_newer(parameters)

    def _note_failure(self, error: Exception) -> None:
        text = describe(error)
        refused = isinstance(error, grpc.aio.AioRpcError) and (
            error.code() is not grpc.StatusCode.UNAVAILABLE and refusal_of(error) is not None
        )
        if refused and self.refusal != text:
            logger.warning("parameter service %s refuses: %s", self.address, text)
        elif not refused and self._failure is None and self._newest is not None:
            logger.warning("parameter service %s gives no parameters any more: %s", self.address, text)
        self._failed_address = self.address
        self.refusal = text if refused else None
        self._failure = text

"""Keeping one stream to one peer open for ever, and saying what is waited for while it is not."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc

from apexrl.transport.channel import REPORT_PERIOD_SECONDS, Backoff, MessageLimits, RenewingChannel
from apexrl.transport.errors import Fenced, RefusalKind, describe, refusal_of

logger = logging.getLogger(__name__)

ResponseT = TypeVar("ResponseT")

#: Seconds that a peer has to answer the first request of a stream before it is tried anew.
OPEN_TIMEOUT_SECONDS = 10.0
#: A stream that lasted this long was good: the next failure starts with the shortest wait again.
_GOOD_STREAM_SECONDS = 5.0


async def read_response(
    call: grpc.aio.StreamStreamCall[Any, ResponseT], kind: type[ResponseT], timeout: float | None = None
) -> ResponseT:
    """The next response of a stream.

    Raises:
        ConnectionError: the peer ended the stream, or did not answer within ``timeout`` seconds.
        grpc.aio.AioRpcError: it ended with an error.
    """
    try:
        async with asyncio.timeout(timeout):
            response = await call.read()
    except TimeoutError:
        raise ConnectionError(f"no answer within {timeout:.0f} s") from None
    if not isinstance(response, kind):
        raise ConnectionError("the peer ended the stream")
    return response


class StreamKeeper:
    """Opens a stream again whenever it ends: 0.2 s after the first failure, then up to 15 s, jittered.

    Args:
        peer: who is at the other end, for logs: "replay shard HOST:PORT".
        address: HOST:PORT.
        limits: message sizes of the peer.
        stream: runs one stream on a channel until it ends, always by an exception; calls :meth:`opened`.
        waiting: what the client waits for, in words; reported every 10 s.
        connection: see :func:`~apexrl.transport.channel.open_channel`.
    """

    def __init__(
        self,
        peer: str,
        address: str,
        limits: MessageLimits,
        stream: Callable[[grpc.aio.Channel], Awaitable[None]],
        waiting: Callable[[], str | None],
        connection: str = "",
    ) -> None:
        self.peer = peer
        self._connection = connection
        self._address = address
        self._limits = limits
        self._stream = stream
        self._waiting = waiting
        self._backoff = Backoff()
        self.refusal: str | None = None
        """Why the peer refuses us, in its words."""
        self.failure: str | None = "not connected yet"
        """Why there is no stream."""

    def opened(self) -> None:
        """The peer has accepted the stream."""
        self.refusal = self.failure = None
        logger.info("stream to %s is open", self.peer)

    def progressed(self) -> None:
        """The stream is of use: the next failure is a new one."""
        self._backoff.reset()

    async def run(self) -> None:
        """Until cancelled, or until the peer fences this learner.

        Raises:
            Fenced: a learner of a higher epoch has taken over.
        """
        reporter = asyncio.create_task(report_waiting(self._waiting))
        channel = RenewingChannel(self._address, self._limits, connection=self._connection)
        try:
            while True:
                started = time.monotonic()
                try:
                    await self._stream(channel.current())
                except (grpc.aio.AioRpcError, ConnectionError) as error:
                    self._note_failure(error)
                except Fenced:
                    raise
                except Exception as error:
                    # A mistake in this program, or one of grpc's own errors: to go on trying is better than to go
                    # silent, and the traceback must not get lost in a background task.
                    logger.exception("stream to %s failed", self.peer)
                    self._note_failure(error)
                if time.monotonic() - started > _GOOD_STREAM_SECONDS:
                    self._backoff.reset()
                await asyncio.sleep(self._backoff.next())
        finally:
            reporter.cancel()
            await channel.close()

    def describe_absence(self) -> str | None:
        """Why there is no stream, in words; None while there is one."""
        if self.refusal is not None:
            return f"{self.peer} refuses: {self.refusal}"
        if self.failure is not None:
            return f"{self.peer} cannot be reached ({self.failure})"
        return None

    def _note_failure(self, error: Exception) -> None:
        text = describe(error)
        kind = None
        if isinstance(error, grpc.aio.AioRpcError):
            kind = refusal_of(error)
            if kind is RefusalKind.FENCED:
                raise Fenced(error.details() or "a learner of a higher epoch was accepted") from error
        refused = kind is not None and kind not in (RefusalKind.STOPPING, RefusalKind.SUPERSEDED)
        if refused and self.refusal != text:
            logger.warning("%s refuses: %s", self.peer, text)
        elif not refused and self.failure is None:
            logger.warning("stream to %s broke: %s", self.peer, text)
        self.refusal = text if refused else None
        self.failure = text


async def report_waiting(waiting: Callable[[], str | None]) -> None:
    """Log every 10 s what is waited for, while it is."""
    while True:
        await asyncio.sleep(REPORT_PERIOD_SECONDS)
        text = waiting()
        if text is not None:
            logger.warning("waiting: %s", text)

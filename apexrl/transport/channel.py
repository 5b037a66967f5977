"""Options of every channel and server, in one place.

Sizes are explicit on both sides and never unlimited. Connections are kept alive by pings, so that a peer that is gone
without a word is noticed within 40 s.
"""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass
from functools import partial

import grpc

from apexrl.config import ConfigError
from apexrl.transport import security
from apexrl.transport.security import Security

logger = logging.getLogger(__name__)

KIB = 1 << 10
MIB = 1 << 20

#: First and longest wait between two attempts to reach a peer, in seconds.
FIRST_BACKOFF_SECONDS = 0.2
LONGEST_BACKOFF_SECONDS = 15.0
#: Whoever waits says so this often.
REPORT_PERIOD_SECONDS = 10.0
#: For calls on a channel that another one has taken the place of.
CLOSE_GRACE_SECONDS = 10.0

Options = list[tuple[str, int]]


@dataclass(frozen=True)
class MessageLimits:
    """Largest message in bytes that a server takes in and gives out. Its clients mirror them."""

    server_receives: int
    server_sends: int

    def __post_init__(self) -> None:
        for name in ("server_receives", "server_sends"):
            value = getattr(self, name)
            if not 0 < value <= 1 << 30:
                raise ValueError(f"{name} is {value}, must be in [1, {1 << 30}]: unlimited messages are not allowed")


#: Inserts close at 256 KiB; draw replies carry the chunks of whole batches.
REPLAY_LIMITS = MessageLimits(server_receives=4 * MIB, server_sends=64 * MIB)
#: Parameters travel in parts of 1 MiB.
LEARNER_LIMITS = MessageLimits(server_receives=4 * MIB, server_sends=4 * MIB)
#: Connections to a parameter service are renewed after this time, so that clients spread out again.
PARAMETERS_CONNECTION_AGE_SECONDS = 900.0


def server_options(limits: MessageLimits, max_connection_age_seconds: float | None = None) -> Options:
    """Options of a server. With an age, connections are renewed so that clients spread out again (never on shards)."""
    options = [
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 15_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", limits.server_receives),
        ("grpc.max_send_message_length", limits.server_sends),
        ("grpc.max_concurrent_streams", 16),
        ("grpc.so_reuseport", 0),
    ]
    if max_connection_age_seconds is not None:
        options.append(("grpc.max_connection_age_ms", int(max_connection_age_seconds * 1000)))
        options.append(("grpc.max_connection_age_grace_ms", 30_000))
    return options


def channel_options(limits: MessageLimits, longest_backoff_seconds: float = LONGEST_BACKOFF_SECONDS) -> Options:
    """Options of a client's channel to a server with ``limits``."""
    return [
        # At least the server's minimum, else it answers too_many_pings.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", limits.server_sends),
        ("grpc.max_send_message_length", limits.server_receives),
        # grpc's default longest wait is 120 s.
        ("grpc.initial_reconnect_backoff_ms", int(FIRST_BACKOFF_SECONDS * 1000)),
        ("grpc.max_reconnect_backoff_ms", int(longest_backoff_seconds * 1000)),
        ("grpc.dns_min_time_between_resolutions_ms", 5_000),
        # Clients repeat calls themselves: only they know what was acknowledged.
        ("grpc.enable_retries", 0),
    ]


def open_channel(
    address: str,
    limits: MessageLimits,
    longest_backoff_seconds: float = LONGEST_BACKOFF_SECONDS,
    *,
    connection: str = "",
) -> grpc.aio.Channel:
    """A channel to HOST:PORT. Connecting happens in the background; call on the loop of :mod:`io_thread`.

    Channels of one process with equal options share a TCP connection, on which a server allows 16 streams. Channels
    with another ``connection`` get another one: for a process that stands for many.
    """
    return _open(security.current(), address, limits, longest_backoff_seconds, connection)


def _open(
    identity: Security, address: str, limits: MessageLimits, longest_backoff_seconds: float, connection: str
) -> grpc.aio.Channel:
    options: Options = channel_options(limits, longest_backoff_seconds)
    named = [("apex.connection", connection)] if connection else []
    return identity.open_channel(address, [*options, *named])


class RenewingChannel:
    """A channel to HOST:PORT that is opened anew once certificates have been renewed on disk.

    Without it a process that outlives its certificate could not connect again. Ask for the channel before each call or
    stream: what is under way on the former one goes on there for up to 10 s. Use it on the loop of :mod:`io_thread`.

    Args:
        address: HOST:PORT.
        limits: message sizes of the peer.
        longest_backoff_seconds: between two attempts to connect.
        connection: see :func:`open_channel`.
    """

    def __init__(
        self,
        address: str,
        limits: MessageLimits,
        longest_backoff_seconds: float = LONGEST_BACKOFF_SECONDS,
        *,
        connection: str = "",
    ) -> None:
        self.address = address
        self._identity = security.current()
        self._open = partial(_open, self._identity, address, limits, longest_backoff_seconds, connection)
        # Before the files are read: what changes in between is noticed later.
        self._stamp = self._identity.stamp()
        self._channel = self._open()
        self._closing: set[asyncio.Task[None]] = set()

    def current(self) -> grpc.aio.Channel:
        """The channel for the next call or stream."""
        try:
            stamp = self._identity.stamp()
            if stamp != self._stamp:
                former, self._channel = self._channel, self._open()
                self._stamp = stamp
                logger.info("connecting to %s anew: certificates have changed", self.address)
                closing = asyncio.create_task(former.close(CLOSE_GRACE_SECONDS))
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
        except (OSError, ConfigError) as error:  # in the middle of being replaced: the next call looks again
            logger.debug("certificates cannot be read again: %s", error)
        return self._channel

    async def close(self) -> None:
        """End everything that is under way."""
        for task in self._closing:
            task.cancel()
        await self._channel.close(None)


class Backoff:
    """Seconds to wait before attempt 1, 2, ... after a failure: doubling, capped, jittered by half."""

    def __init__(self, first: float = FIRST_BACKOFF_SECONDS, longest: float = LONGEST_BACKOFF_SECONDS) -> None:
        self._first = first
        self._longest = longest
        self._attempts = 0
        self._random = random.Random()

    def next(self) -> float:
        """Seconds until the next attempt."""
        base = min(self._longest, self._first * 2.0 ** min(self._attempts, 16))
        self._attempts += 1
        return base * self._random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """The peer answered."""
        self._attempts = 0

"""A stream on which nothing is said stays open: an actor's, while the insert limit waits for a learner that is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from apexrl.transport.channel import LEARNER_LIMITS, Options, channel_options, server_options

#: Pings come this many times as often as they really do, so that minutes become seconds.
FASTER = 100
#: In which the client sends twenty pings. A server that minds them ends the connection with the third one.
QUIET_SECONDS = 6.0


def faster(options: Options) -> Options:
    """The same, with all times of pings divided."""
    return [(name, value // FASTER if "ping_interval" in name or "keepalive_time" in name else value)
            for name, value in options]  # fmt: skip


async def open_quietly(of_server: Options, of_client: Options) -> None:
    """Hold a stream on which nobody sends anything, and return when the time has passed."""

    async def silent(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request

    server = grpc.aio.server(options=of_server)
    handler = grpc.stream_stream_rpc_method_handler(silent)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("Quiet", {"Hold": handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=of_client)
    try:
        call = channel.stream_stream("/Quiet/Hold")()
        await call.write(b"first")
        assert await call.read() == b"first"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(QUIET_SECONDS):
                await call.read()
    finally:
        await channel.close()
        await server.stop(None)


def test_pings_of_our_clients_are_not_too_many_for_our_servers() -> None:
    asyncio.run(open_quietly(faster(server_options(LEARNER_LIMITS)), faster(channel_options(LEARNER_LIMITS))))


def test_they_would_be_for_a_server_with_the_defaults_of_grpc() -> None:
    """Else the test before would show nothing."""
    with pytest.raises(grpc.aio.AioRpcError, match=r"(?i)too[ _]many[ _]pings"):
        asyncio.run(open_quietly([], faster(channel_options(LEARNER_LIMITS))))

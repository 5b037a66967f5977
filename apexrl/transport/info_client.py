"""Asks a replay shard for its state."""

from __future__ import annotations

import grpc

from apexrl.transport import replay_pb2 as pb
from apexrl.transport import security
from apexrl.transport._generated.apex.v1.replay_pb2_grpc import ReplayStub
from apexrl.transport.channel import REPLAY_LIMITS, open_channel
from apexrl.transport.errors import TransportError, describe
from apexrl.transport.io_thread import io_thread


class UnreachableError(TransportError):
    """A service gave no answer; the message names its address."""


def fetch_info(address: str, *, timeout_seconds: float, top: int = 0) -> pb.GetInfoResponse:
    """State of the shard at HOST:PORT, with the ``top`` items of highest priority of each table.

    Raises:
        UnreachableError: no answer within ``timeout_seconds``.
    """

    async def call() -> pb.GetInfoResponse:
        channel = open_channel(address, REPLAY_LIMITS)
        try:
            response: pb.GetInfoResponse = await ReplayStub(channel).GetInfo(
                pb.GetInfoRequest(top=top),
                timeout=timeout_seconds,
                wait_for_ready=True,
                metadata=security.current().metadata,
            )
            return response
        except grpc.aio.AioRpcError as error:
            raise UnreachableError(f"replay shard {address} gave no answer ({describe(error)})") from error
        finally:
            await channel.close(None)

    return io_thread().run(call())

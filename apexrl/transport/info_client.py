"""Asks services for their state."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc

from apexrl.transport import coordinator_pb2, security
from apexrl.transport import replay_pb2 as pb
from apexrl.transport._generated.apex.v1.coordinator_pb2_grpc import CoordinatorStub
from apexrl.transport._generated.apex.v1.replay_pb2_grpc import ReplayStub
from apexrl.transport.channel import REPLAY_LIMITS, open_channel
from apexrl.transport.errors import TransportError, describe
from apexrl.transport.io_thread import io_thread

#: What a learner or a replay shard says of itself.
State = coordinator_pb2.GetStatusResponse | pb.GetInfoResponse


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


def fetch_states(addresses: Sequence[str], *, timeout_seconds: float) -> list[State | UnreachableError]:
    """State of every service at HOST:PORT, in the order of ``addresses``; all are asked at once, and each once.

    Which of them is a learner and which a shard they say themselves. In place of a state there is an error for who
    gave no answer within ``timeout_seconds``, refuses the connection, or is something else.
    """

    async def ask() -> list[State | UnreachableError]:
        return await asyncio.gather(*(_state_of(address, timeout_seconds) for address in addresses))

    return io_thread().run(ask())


async def _state_of(address: str, timeout_seconds: float) -> State | UnreachableError:
    # A shard's limits, which are the larger ones, because it is not known yet who answers.
    channel = open_channel(address, REPLAY_LIMITS)
    metadata = security.current().metadata
    try:
        try:
            status: coordinator_pb2.GetStatusResponse = await CoordinatorStub(channel).GetStatus(
                coordinator_pb2.GetStatusRequest(), timeout=timeout_seconds, metadata=metadata
            )
            return status
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                raise
        info: pb.GetInfoResponse = await ReplayStub(channel).GetInfo(
            pb.GetInfoRequest(), timeout=timeout_seconds, metadata=metadata
        )
        return info
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            return UnreachableError(f"{address} answers, but is neither a learner nor a replay shard")
        return UnreachableError(f"{address} gave no answer ({describe(error)})")
    finally:
        await channel.close(None)

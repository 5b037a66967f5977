"""Parameters, a server for them on a free port, and clients, for the tests beside this file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc
from replay_scene import RUN, WAIT, handshake

from apex_learner.relay import Relay
from apexrl.transport.channel import LEARNER_LIMITS, open_channel
from apexrl.transport.io_thread import io_thread
from apexrl.transport.parameter_client import ParameterClient
from apexrl.transport.server import Register, RunningServer, start_server
from apexrl.types import Parameters, ParameterVersion

#: Between two looks of a relay, so that tests do not wait long.
POLL_SECONDS = 0.02


def parameters(epoch: int, step: int, payload: bytes = b"weights", run_id: str = RUN) -> Parameters:
    return Parameters(ParameterVersion(epoch, step), run_id, payload, hashlib.sha256(payload).digest())


@contextmanager
def server(*register: Register, listen: str = "127.0.0.1:0") -> Iterator[RunningServer]:
    io = io_thread()
    running = io.run(start_server(listen, register, LEARNER_LIMITS))
    try:
        yield running
    finally:
        io.run(running.stop(0.1))


@contextmanager
def relay(upstream: str, listen: str = "127.0.0.1:0") -> Iterator[Relay]:
    running = Relay(upstream, listen, POLL_SECONDS)
    try:
        yield running
    finally:
        running.stop()


@contextmanager
def parameter_client(
    address: str, run_id: str = "", fallbacks: tuple[str, ...] = (), **shared: object
) -> Iterator[ParameterClient]:
    client = ParameterClient(address, handshake(run_id, **shared), fallbacks=fallbacks)
    try:
        yield client
    finally:
        client.close()


def is_ready(address: str, service: str) -> bool:
    """What the health service says of ``service``."""

    async def ask() -> Any:
        channel = open_channel(address, LEARNER_LIMITS)
        try:
            request = health_pb2.HealthCheckRequest(service=service)
            return await health_pb2_grpc.HealthStub(channel).Check(request, timeout=WAIT)
        finally:
            await channel.close(None)

    return bool(io_thread().run(ask()).status == health_pb2.HealthCheckResponse.SERVING)


def unused_address() -> str:
    """HOST:PORT at which nobody listens."""
    with server() as running:
        return running.address

"""A gRPC server with the standard health service, on the process's loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from apexrl.transport import security
from apexrl.transport.channel import MessageLimits, server_options
from apexrl.transport.errors import REFUSAL_METADATA_KEY, ListenError, Refused
from apexrl.transport.handlers import CallObserver, CallWatch
from apexrl.transport.handshake import clip

#: Adds a servicer to the server.
Register = Callable[[grpc.aio.Server], None]


async def abort_refused(context: grpc.aio.ServicerContext[Any, Any], refusal: Refused) -> NoReturn:
    """End a call with a refusal: its status, its message, and its kind beside them."""
    await context.abort(
        refusal.status,
        clip(str(refusal)),
        trailing_metadata=((REFUSAL_METADATA_KEY, refusal.kind.value),),
    )
    raise AssertionError("abort() returned")


class RunningServer:
    """A started server. Every method is a coroutine of the loop it was started on."""

    def __init__(self, server: grpc.aio.Server, health_servicer: Any, address: str, services: Sequence[str]) -> None:
        self._server = server
        self._health = health_servicer
        self._services = ("", *services)
        self.address = address
        """HOST:PORT as bound; the port is real where 0 was asked for."""

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    async def set_serving(self, serving: bool) -> None:
        """Tell the health service whether this server is ready for work."""
        kind = health_pb2.HealthCheckResponse
        status = kind.SERVING if serving else kind.NOT_SERVING
        for service in self._services:
            await self._health.set(service, status)

    async def stop(self, grace_seconds: float) -> None:
        """Report not ready, refuse new calls, give the running ones ``grace_seconds``, cancel what is left."""
        await self.set_serving(False)
        await self._server.stop(grace_seconds)

    async def wait(self) -> None:
        """Return when the server has stopped."""
        await self._server.wait_for_termination()


async def start_server(
    address: str,
    register: Sequence[Register],
    limits: MessageLimits,
    *,
    services: Sequence[str] = (),
    max_connection_age_seconds: float | None = None,
    serving: bool = True,
    calls: CallObserver | None = None,
) -> RunningServer:
    """Start a server on ``address`` (HOST:PORT; port 0 = a free one).

    Args:
        address: where to listen.
        register: adds the servicers, e.g. ``lambda server: add_ReplayServicer_to_server(servicer, server)``.
        limits: message sizes.
        services: full names of the services for the health service, which knows "" in any case.
        max_connection_age_seconds: see :func:`~apexrl.transport.channel.server_options`.
        serving: whether the server reports itself ready from the start.
        calls: is told of every call.

    Raises:
        ListenError: the address cannot be bound, e.g. because its port is in use.
        ConfigError: this process has no certificate to show, and must.
    """
    identity = security.current()
    # The outer one first: it sees what the others refuse.
    interceptors = [*([] if calls is None else [CallWatch(calls)]), *identity.interceptors()]
    server = grpc.aio.server(options=server_options(limits, max_connection_age_seconds), interceptors=interceptors)
    for add in register:
        add(server)
    health_servicer = health.aio.HealthServicer()  # type: ignore[attr-defined]
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    try:
        port = identity.add_port(server, address)
    except RuntimeError as error:
        raise ListenError(
            f"cannot listen on {address}: the port is in use, or the host is not one of this machine"
        ) from error
    if port == 0:
        raise ListenError(f"cannot listen on {address}: the port is in use, or the host is not one of this machine")
    host = address.rpartition(":")[0]
    running = RunningServer(server, health_servicer, f"{host}:{port}", services)
    await running.set_serving(serving)
    await server.start()
    return running

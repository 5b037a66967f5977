"""The parameter service: the newest parameters to whoever has older ones. Served by the learner and by relays."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from apexrl.transport import parameters_pb2 as pb
from apexrl.transport._generated.apex.v1 import parameters_pb2_grpc
from apexrl.transport.errors import RefusalKind, Refused
from apexrl.transport.handshake import Handshake, verify
from apexrl.transport.parameter_messages import (
    encode,
    encode_not_modified,
    is_newer,
    version_from_proto,
    with_configuration,
)
from apexrl.transport.server import Register, abort_refused
from apexrl.types import Parameters, ParameterVersion

SERVICE_NAME = "apex.v1.Parameters"
MAX_TRANSFERS = 16
#: A caller that takes its parts slower than this loses its transfer to those that wait.
TRANSFER_SECONDS = 60.0


@dataclass(frozen=True)
class _Published:
    """Parameters as messages, made once for everybody."""

    parameters: Parameters
    header: pb.GetParametersResponse
    header_for_relays: pb.GetParametersResponse
    parts: list[pb.GetParametersResponse]


class ParametersServicer(parameters_pb2_grpc.ParametersServicer):
    """Serves what was published last, wherever that comes from.

    Args:
        handshake: of the run that is served; None = not known before the first publication, which brings it.
        max_transfers: payloads on their way at once. The others wait, first come, first served, and get what is the
            newest when their turn has come.
        transfer_seconds: time that a transfer may take once it has begun.
        absence: why there is nothing to serve yet, in words.
    """

    def __init__(
        self,
        handshake: Handshake | None = None,
        *,
        max_transfers: int = MAX_TRANSFERS,
        transfer_seconds: float = TRANSFER_SECONDS,
        absence: Callable[[], str] = lambda: "the learner is starting and has published no parameters yet",
    ) -> None:
        self._lock = threading.Lock()
        self._handshake = handshake
        self._published: _Published | None = None
        self._transfers = asyncio.Semaphore(max_transfers)
        self._transfer_seconds = transfer_seconds
        self._absence = absence
        self.served_bytes = 0
        """Bytes of payloads sent, ever."""
        self.waiting_transfers = 0
        """Callers that wait for their turn, now."""
        self.not_modified = 0
        """Requests answered with `not_modified`, ever."""

    def publish(self, parameters: Parameters, handshake: Handshake | None = None) -> None:
        """Serve ``parameters`` from now on. From any thread; encodes once for everybody.

        ``handshake`` is that of the parameters' run, if it is another than before.
        """
        with self._lock:
            ours = handshake or self._handshake
        if ours is None:
            raise ValueError("handshake is None, must be given with the first parameters")
        header, *parts = encode(parameters)
        published = _Published(parameters, header, with_configuration(header, ours.shared_config_json), parts)
        with self._lock:
            self._handshake, self._published = ours, published

    def register(self) -> Register:
        """For :func:`~apexrl.transport.server.start_server`."""
        return lambda server: parameters_pb2_grpc.add_ParametersServicer_to_server(self, server)

    async def GetParameters(  # type: ignore[override]
        self, request: pb.GetParametersRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """See ``parameters.proto``."""
        version = version_from_proto(request.if_newer_than) if request.HasField("if_newer_than") else None
        try:
            theirs = Handshake.from_proto(request.handshake)
            published = self._newest_for(theirs, request.relay)
            if is_newer(published.parameters, version, theirs.run_id):
                await self._transfer(theirs, request.relay, context)
            else:
                self.not_modified += 1
                held: ParameterVersion = published.parameters.version
                await context.write(encode_not_modified(published.parameters.run_id, held))
        except Refused as refusal:
            await abort_refused(context, refusal)
        except TimeoutError:
            # The transfer's place is free by now, so it does not matter how long a stalled peer takes to notice.
            await context.abort(
                grpc.StatusCode.DEADLINE_EXCEEDED, f"the transfer took longer than {self._transfer_seconds:g} s"
            )

    async def _transfer(self, theirs: Handshake, relay: bool, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self.waiting_transfers += 1
        try:
            await self._transfers.acquire()
        finally:
            self.waiting_transfers -= 1
        try:
            # Newer ones may have come during the wait. To send the older would be a waste, and to keep them for the
            # queue would cost memory without a bound.
            published = self._newest_for(theirs, relay)
            async with asyncio.timeout(self._transfer_seconds):
                await context.write(published.header_for_relays if relay else published.header)
                for part in published.parts:
                    await context.write(part)
        finally:
            self._transfers.release()
        self.served_bytes += len(published.parameters.payload)

    def _newest_for(self, theirs: Handshake, relay: bool) -> _Published:
        """What a peer may have.

        Raises:
            Refused: its configuration is another, or there is nothing yet.
        """
        with self._lock:
            ours, published = self._handshake, self._published
        if ours is not None and not relay:
            verify(ours, theirs, check_run=False)
        if published is None:
            raise Refused(RefusalKind.STARTING, self._absence())
        return published

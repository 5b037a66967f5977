"""The parameter service: the newest parameters to whoever has older ones."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from apexrl.transport import parameters_pb2 as pb
from apexrl.transport._generated.apex.v1 import parameters_pb2_grpc
from apexrl.transport.errors import RefusalKind, Refused
from apexrl.transport.handshake import Handshake, verify
from apexrl.transport.parameter_messages import encode, encode_not_modified, is_newer, version_from_proto
from apexrl.transport.server import Register, abort_refused
from apexrl.types import Parameters

SERVICE_NAME = "apex.v1.Parameters"
MAX_TRANSFERS = 16


class ParametersServicer(parameters_pb2_grpc.ParametersServicer):
    """Serves what was published last.

    Args:
        handshake: of the learner, or a function that gives it (the run may be known only after the start).
        max_transfers: payloads on their way at once; the others wait.
    """

    def __init__(self, handshake: Handshake | Callable[[], Handshake], max_transfers: int = MAX_TRANSFERS) -> None:
        self._handshake = handshake
        self._lock = threading.Lock()
        self._published: tuple[Parameters, list[pb.GetParametersResponse]] | None = None
        self._transfers = asyncio.Semaphore(max_transfers)
        self.served_bytes = 0
        """Bytes of payloads sent, ever."""
        self.not_modified = 0
        """Requests answered with `not_modified`, ever."""

    def publish(self, parameters: Parameters) -> None:
        """Serve ``parameters`` from now on. From any thread; encodes once for everybody."""
        responses = encode(parameters)
        with self._lock:
            self._published = (parameters, responses)

    def register(self) -> Register:
        """For :func:`~apexrl.transport.server.start_server`."""
        return lambda server: parameters_pb2_grpc.add_ParametersServicer_to_server(self, server)

    async def GetParameters(
        self, request: pb.GetParametersRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.GetParametersResponse]:
        """See ``parameters.proto``."""
        ours = self._handshake() if callable(self._handshake) else self._handshake
        try:
            theirs = Handshake.from_proto(request.handshake)
            verify(ours, theirs, check_run=False)
        except Refused as refusal:
            await abort_refused(context, refusal)
        with self._lock:
            published = self._published
        if published is None:
            await abort_refused(
                context, Refused(RefusalKind.STARTING, "the learner is starting and has published no parameters yet")
            )
        parameters, responses = published
        version = version_from_proto(request.if_newer_than) if request.HasField("if_newer_than") else None
        if not is_newer(parameters, version, theirs.run_id):
            self.not_modified += 1
            yield encode_not_modified(parameters.run_id, parameters.version)
            return
        async with self._transfers:
            for response in responses:
                yield response
        self.served_bytes += len(parameters.payload)

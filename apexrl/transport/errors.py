"""What can go wrong between services, in words that name the peer and the field."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

import grpc

from apexrl.types import Fenced

__all__ = [
    "Closed",
    "Fenced",
    "ListenError",
    "RefusalKind",
    "Refused",
    "TransportError",
    "describe",
    "refusal_of",
]

#: Trailing metadata of a refusal: one of :class:`RefusalKind`.
REFUSAL_METADATA_KEY = "apex-refusal"


class RefusalKind(StrEnum):
    """Why a service refused a peer. Sent beside the status so that no client has to read the message."""

    FENCED = "fenced"
    """A learner of a higher epoch was accepted."""
    RUN = "run"
    """The peer belongs to another run."""
    CONFIGURATION = "configuration"
    """Shared configuration fields differ."""
    PROTOCOL = "protocol"
    """The peer speaks a version of the protocol that is too old or too new."""
    TABLE = "table"
    """The table exists with another configuration."""
    MALFORMED = "malformed"
    """A message that does not say what it must."""
    STARTING = "starting"
    """The service has nothing to give yet."""
    STOPPING = "stopping"
    """The service is shutting down."""
    SUPERSEDED = "superseded"
    """The same peer opened a newer stream."""
    EMPTY = "empty"
    """A draw from a table without items."""


class TransportError(Exception):
    """Base of this module's errors."""


class Refused(TransportError):
    """A service refused a peer; ``kind`` says why, the message names the field."""

    def __init__(self, kind: RefusalKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    @property
    def status(self) -> grpc.StatusCode:
        """The gRPC status that carries this refusal."""
        return _STATUS.get(self.kind, grpc.StatusCode.FAILED_PRECONDITION)


_STATUS = {
    RefusalKind.MALFORMED: grpc.StatusCode.INVALID_ARGUMENT,
    RefusalKind.STARTING: grpc.StatusCode.UNAVAILABLE,
    RefusalKind.STOPPING: grpc.StatusCode.UNAVAILABLE,
    RefusalKind.SUPERSEDED: grpc.StatusCode.ABORTED,
}


class Closed(TransportError):
    """The client was closed while a call waited."""


class ListenError(TransportError):
    """An address cannot be listened on; the message names it."""


def refusal_of(error: grpc.aio.AioRpcError) -> RefusalKind | None:
    """The kind of refusal that a failed call carries, if it was one."""
    metadata: Iterable[tuple[str, str | bytes]] = error.trailing_metadata() or ()  # type: ignore[assignment]
    for key, value in metadata:
        if key == REFUSAL_METADATA_KEY:
            try:
                return RefusalKind(value if isinstance(value, str) else value.decode())
            except ValueError:
                return None
    return None


def describe(error: BaseException) -> str:
    """One line about a failed call, for logs."""
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details() or 'no details'}"
    return f"{type(error).__name__}: {error}"

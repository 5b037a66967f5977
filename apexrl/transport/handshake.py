"""Who speaks, under which configuration, and what to say when two peers do not fit together."""

from __future__ import annotations

import hashlib
import os
import re
import socket
from dataclasses import dataclass, field
from functools import cached_property

from apexrl.config.digest import difference
from apexrl.transport import replay_pb2 as pb
from apexrl.transport.errors import RefusalKind, Refused

PROTOCOL_VERSION = 1
#: The same or the one before.
ACCEPTED_VERSIONS = range(max(1, PROTOCOL_VERSION - 1), PROTOCOL_VERSION + 1)
MAX_SHARED_CONFIG_BYTES = 64 << 10
MAX_PEER_CHARACTERS = 256
#: A gRPC status travels in HTTP headers, which are small.
MAX_REFUSAL_CHARACTERS = 1500

_RUN_ID = re.compile(r"[0-9a-f]{32}\Z")


def default_peer_name() -> str:
    """Name of this process for logs of others: pod name (the host name in Kubernetes) and process id."""
    return f"{socket.gethostname()}:{os.getpid()}"


@dataclass(frozen=True)
class Handshake:
    """One side of a handshake.

    ``run_id`` is the learner's run (32 hex digits), empty while it is unknown. ``shared_config_json`` is
    :func:`apexrl.config.shared_json` of the experiment.
    """

    run_id: str
    shared_config_json: str = field(repr=False)
    peer: str = field(default_factory=default_peer_name)

    @cached_property
    def config_digest(self) -> str:
        """SHA-256 (hex) of the shared configuration."""
        return hashlib.sha256(self.shared_config_json.encode()).hexdigest()

    def to_proto(self) -> pb.Handshake:
        return pb.Handshake(
            protocol_version=PROTOCOL_VERSION,
            run_id=self.run_id,
            config_digest=self.config_digest,
            shared_config_json=self.shared_config_json,
            peer=self.peer,
        )

    @classmethod
    def from_proto(cls, message: pb.Handshake) -> Handshake:
        """The peer's handshake.

        Raises:
            Refused: another protocol, or a message that cannot be; the field is named.
        """
        if message.protocol_version not in ACCEPTED_VERSIONS:
            accepted = " or ".join(map(str, ACCEPTED_VERSIONS))
            raise Refused(
                RefusalKind.PROTOCOL, f"handshake.protocol_version is {message.protocol_version}, must be {accepted}"
            )
        size = len(message.shared_config_json.encode())
        if size > MAX_SHARED_CONFIG_BYTES:
            raise _malformed("shared_config_json", f"{size} bytes long", f"at most {MAX_SHARED_CONFIG_BYTES}")
        if message.run_id and not _RUN_ID.match(message.run_id):
            raise _malformed("run_id", repr(message.run_id[:64]), "32 hex digits, or empty")
        if len(message.peer) > MAX_PEER_CHARACTERS:
            raise _malformed("peer", f"{len(message.peer)} characters long", f"at most {MAX_PEER_CHARACTERS}")
        handshake = cls(message.run_id, message.shared_config_json, message.peer)
        if message.config_digest != handshake.config_digest:
            raise _malformed("config_digest", repr(message.config_digest[:64]), "the SHA-256 of shared_config_json")
        return handshake


def verify(ours: Handshake, theirs: Handshake, *, check_run: bool = True) -> None:
    """Check that a peer belongs to our run and understands rows and parameters as we do.

    With ``check_run`` the peer must name our run; without, any run will do (parameters go to whoever asks, because
    that is how an actor learns of a new run).

    Raises:
        Refused: the message names what differs.
    """
    if check_run and ours.run_id != theirs.run_id:
        said = f"run {theirs.run_id}" if theirs.run_id else "no run"
        raise Refused(RefusalKind.RUN, f"handshake.run_id: {theirs.peer} names {said}, this is run {ours.run_id}")
    if ours.config_digest != theirs.config_digest:
        lines = difference(ours.shared_config_json, theirs.shared_config_json)
        raise Refused(
            RefusalKind.CONFIGURATION,
            clip(f"shared configuration of {theirs.peer} differs ({ours.peer} = here): {'; '.join(lines)}"),
        )


def clip(text: str) -> str:
    """``text`` cut to what a gRPC status can carry."""
    return text if len(text) <= MAX_REFUSAL_CHARACTERS else text[: MAX_REFUSAL_CHARACTERS - 4] + " ..."


def _malformed(name: str, value: str, allowed: str) -> Refused:
    return Refused(RefusalKind.MALFORMED, f"handshake.{name} is {value}, must be {allowed}")

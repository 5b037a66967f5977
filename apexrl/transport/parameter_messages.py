"""Parameters as messages: a header, then the payload in parts; and back, with every size and the checksum verified."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from apexrl.transport import parameters_pb2 as pb
from apexrl.transport.channel import MIB
from apexrl.transport.handshake import MAX_SHARED_CONFIG_BYTES
from apexrl.types import Parameters, ParameterVersion, SignatureError

PART_BYTES = MIB
MAX_PAYLOAD_BYTES = 1 << 30


def version_to_proto(version: ParameterVersion) -> pb.ParameterVersion:
    return pb.ParameterVersion(epoch=version.epoch, step=version.step)


def version_from_proto(message: pb.ParameterVersion) -> ParameterVersion:
    return ParameterVersion(message.epoch, message.step)


def is_newer(parameters: Parameters, version: ParameterVersion | None, run_id: str) -> bool:
    """Whether ``parameters`` are news to who has ``version`` of run ``run_id``; None or another run: always."""
    return version is None or parameters.run_id != run_id or parameters.version > version


@dataclass(frozen=True)
class NotModified:
    """The answer to who has the newest parameters already."""

    run_id: str
    version: ParameterVersion


def encode(parameters: Parameters) -> list[pb.GetParametersResponse]:
    """Header and parts of at most 1 MiB. Made once per publication, served to everybody."""
    header = pb.ParameterHeader(
        run_id=parameters.run_id,
        version=version_to_proto(parameters.version),
        payload_bytes=len(parameters.payload),
        sha256=parameters.sha256 or hashlib.sha256(parameters.payload).digest(),
    )
    parts = [parameters.payload[i : i + PART_BYTES] for i in range(0, len(parameters.payload), PART_BYTES)]
    return [pb.GetParametersResponse(header=header), *(pb.GetParametersResponse(part=part) for part in parts)]


def with_configuration(header: pb.GetParametersResponse, shared_config_json: str) -> pb.GetParametersResponse:
    """``header`` as a relay gets it: with the run's shared configuration."""
    told = pb.GetParametersResponse()
    told.CopyFrom(header)
    told.header.shared_config_json = shared_config_json
    return told


def encode_not_modified(run_id: str, version: ParameterVersion) -> pb.GetParametersResponse:
    """The only response to who has the newest."""
    header = pb.ParameterHeader(run_id=run_id, version=version_to_proto(version), not_modified=True)
    return pb.GetParametersResponse(header=header)


class ParameterAssembler:
    """Puts responses together again, in order.

    Every ``SignatureError`` names the field: a payload that is larger than announced or allowed, a wrong checksum.
    """

    def __init__(self) -> None:
        self._header: pb.ParameterHeader | None = None
        self._parts: list[bytes] = []
        self._bytes = 0

    def feed(self, response: pb.GetParametersResponse) -> Parameters | NotModified | None:
        """Take the next response; the result once it is complete."""
        if response.HasField("header"):
            self._begin(response.header)
        elif self._header is None:
            raise SignatureError("parameters.part came before the header")
        else:
            self._bytes += len(response.part)
            if self._bytes > self._header.payload_bytes:
                raise SignatureError(
                    f"parameters.part: {self._bytes} bytes came, the header announced {self._header.payload_bytes}"
                )
            self._parts.append(response.part)
        assert self._header is not None
        if self._header.not_modified:
            return NotModified(self._header.run_id, version_from_proto(self._header.version))
        return self._complete(self._header) if self._bytes == self._header.payload_bytes else None

    def _begin(self, header: pb.ParameterHeader) -> None:
        if self._header is not None:
            raise SignatureError("parameters.header came twice")
        if header.payload_bytes > MAX_PAYLOAD_BYTES:
            raise SignatureError(
                f"parameters.header.payload_bytes is {header.payload_bytes}, must be at most {MAX_PAYLOAD_BYTES}"
            )
        size = len(header.shared_config_json.encode())
        if size > MAX_SHARED_CONFIG_BYTES:
            raise SignatureError(
                f"parameters.header.shared_config_json is {size} bytes long, must be at most {MAX_SHARED_CONFIG_BYTES}"
            )
        self._header = header

    def _complete(self, header: pb.ParameterHeader) -> Parameters:
        payload = b"".join(self._parts)
        if hashlib.sha256(payload).digest() != header.sha256:
            raise SignatureError(f"parameters.header.sha256 does not belong to the {len(payload)} bytes that came")
        version = version_from_proto(header.version)
        return Parameters(version, header.run_id, payload, header.sha256, header.shared_config_json)

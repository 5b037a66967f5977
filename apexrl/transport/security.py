"""Encryption and identity of this process's connections: TLS, roles in certificates, and a shared token.

A process has one identity, so its channels and servers take it from here: :func:`use` it once at the start.
Certificates are read again when their files change: by servers before a handshake, by clients before a call or a stream
(:class:`~apexrl.transport.channel.RenewingChannel`). The token is read once.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from apexrl.config import ConfigError, SecurityConfig
from apexrl.transport.handlers import Behaviour, Context, Continuation, around

Metadata = tuple[tuple[str, str], ...]
#: When each file of an identity was written, and which it is.
Stamp = tuple[tuple[int, int], ...]

TOKEN_HEADER = "authorization"
#: Names in certificates of those who may call a method; everybody else is refused.
CALLERS: dict[str, frozenset[str]] = {
    "/apex.v1.Replay/Insert": frozenset({"apex-actor"}),
    "/apex.v1.Replay/Sample": frozenset({"apex-learner"}),
    "/apex.v1.Replay/UpdatePriorities": frozenset({"apex-learner"}),
    "/apex.v1.Replay/GetInfo": frozenset({"apex-learner", "apex-operator"}),
    "/apex.v1.Coordinator/Heartbeat": frozenset({"apex-actor", "apex-evaluator"}),
    "/apex.v1.Coordinator/GetStatus": frozenset({"apex-operator"}),
    "/apex.v1.Parameters/GetParameters": frozenset({"apex-actor", "apex-evaluator", "apex-relay", "apex-operator"}),
}
_HEALTH = "/grpc.health.v1.Health/"


@dataclass(frozen=True)
class Security:
    """How this process encrypts, and who it is. Made by :meth:`load`."""

    config: SecurityConfig = field(default_factory=SecurityConfig)
    token: str = ""

    @classmethod
    def load(cls, config: SecurityConfig) -> Security:
        """Read what the section names.

        Raises:
            ConfigError: a file cannot be read, or the token is empty.
        """
        for name in ("ca_file", "certificate_file", "key_file"):
            if getattr(config, name):
                _read(f"security.{name}", getattr(config, name))
        token = ""
        if config.token_file:
            token = _read("security.token_file", config.token_file).decode("ascii", "replace").strip()
            if not token or not token.isprintable() or "\ufffd" in token:
                raise ConfigError(f"security.token_file {config.token_file} must hold one line of printable ASCII")
        return cls(config, token)

    @property
    def metadata(self) -> Metadata:
        """To be sent with every call."""
        return ((TOKEN_HEADER, f"Bearer {self.token}"),) if self.token else ()

    def open_channel(self, address: str, options: Sequence[tuple[str, Any]]) -> grpc.aio.Channel:
        """A channel of this identity to HOST:PORT."""
        config = self.config
        if config.mode == "none":
            return grpc.aio.insecure_channel(address, options=options)
        own = _own_pair(config) if config.mode == "mtls" else (None, None)
        credentials = grpc.ssl_channel_credentials(_read("security.ca_file", config.ca_file), *own)
        named = [*options, ("grpc.ssl_target_name_override", config.server_name)]
        return grpc.aio.secure_channel(address, credentials, options=named)

    def stamp(self) -> Stamp:
        """Changes when a file that :meth:`open_channel` reads has changed.

        Raises:
            OSError: a file is not there, perhaps because it is being replaced.
        """
        return _stamp(self.config)

    def add_port(self, server: grpc.aio.Server, address: str) -> int:
        """Let ``server`` listen on HOST:PORT; returns the port.

        Raises:
            ConfigError: there is no certificate to show.
            RuntimeError: the address cannot be bound (as of grpc).
        """
        config = self.config
        if config.mode == "none":
            return server.add_insecure_port(address)
        if not config.certificate_file:
            raise ConfigError(
                f"security.certificate_file is '', must be a file: who listens shows one while security.mode is "
                f"{config.mode!r}"
            )
        files = _ServerFiles(config)
        credentials = grpc.dynamic_ssl_server_credentials(
            files.read(),
            files.changed,  # type: ignore[arg-type]  # None is what grpc documents for "as before"
            require_client_authentication=config.mode == "mtls",
        )
        return server.add_secure_port(address, credentials)

    def interceptors(self) -> list[grpc.aio.ServerInterceptor[Any, Any]]:
        """Of a server: the checks that every call but those of the health service must pass."""
        return [_Guard(self)] if self.token or self.config.mode == "mtls" else []

    async def check(self, method: str, context: Context) -> None:
        """End the call unless its caller knows the token and, with mtls, may call ``method``."""
        if self.token:
            sent = dict(context.invocation_metadata() or ()).get(TOKEN_HEADER, "")
            if not hmac.compare_digest(str(sent).encode(), f"Bearer {self.token}".encode()):
                await context.abort(
                    grpc.StatusCode.UNAUTHENTICATED, "the token is missing or wrong; see security.token_file"
                )
        if self.config.mode == "mtls":
            names = caller_names(context)
            allowed = CALLERS.get(method, frozenset())
            if not names & allowed:
                await context.abort(
                    grpc.StatusCode.PERMISSION_DENIED,
                    f"{method} may be called by certificates with the name {' or '.join(sorted(allowed))}",
                )


def caller_names(context: Context) -> frozenset[str]:
    """Names in the certificate of a call's peer: the common name and the alternative ones."""
    found = context.auth_context()
    fields = (*found.get("x509_common_name", ()), *found.get("x509_subject_alternative_name", ()))
    return frozenset(name.decode("utf-8", "replace") for name in fields)


_current = Security()


def use(security: Security) -> None:
    """Make it the identity of this process, for channels and servers to come."""
    global _current
    _current = security


def current() -> Security:
    """The identity of this process."""
    return _current


class _ServerFiles:
    """A server's certificate, as it lies on disk now."""

    def __init__(self, config: SecurityConfig) -> None:
        self._config = config
        self._stamp: Stamp = ()

    def read(self) -> grpc.ServerCertificateConfiguration:
        config = self._config
        self._stamp = _stamp(config)
        return grpc.ssl_server_certificate_configuration([_own_pair(config)], _read("security.ca_file", config.ca_file))

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """What to show from now on; None = what was shown before. Called by grpc before a handshake."""
        try:
            return self.read() if _stamp(self._config) != self._stamp else None
        except (OSError, ConfigError):  # in the middle of being replaced: the next handshake looks again
            self._stamp = ()
            return None


class _Guard(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs alone
    """Puts the checks before every method."""

    def __init__(self, security: Security) -> None:
        self._security = security

    async def intercept_service(self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails) -> Any:
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None or method.startswith(_HEALTH):
            return handler

        def guarded(behaviour: Behaviour) -> Behaviour:
            async def call(request: Any, context: Context) -> Any:
                await self._security.check(method, context)
                return await behaviour(request, context)

            return call

        return around(handler, guarded)


def _stamp(config: SecurityConfig) -> Stamp:
    paths = (config.ca_file, config.certificate_file, config.key_file)
    return tuple((found.st_mtime_ns, found.st_ino) for found in map(os.stat, filter(None, paths)))


def _own_pair(config: SecurityConfig) -> tuple[bytes, bytes]:
    """Key and certificate."""
    return (
        _read("security.key_file", config.key_file),
        _read("security.certificate_file", config.certificate_file),
    )


def _read(name: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{name} {path} cannot be read: {error.strerror}") from error

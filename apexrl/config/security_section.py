"""The section of a configuration that says how services know one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from apexrl.config.fields import ConfigError


@dataclass(frozen=True)
class SecurityConfig:
    """Encryption and identity on every connection. Files are read by the process that the configuration is given to."""

    mode: Literal["none", "tls", "mtls"] = "none"
    """none: plain text, for a network that is trusted. tls: encrypted, clients check servers. mtls: servers check
    clients as well, and what a client may call depends on the name in its certificate."""
    ca_file: str = ""
    """PEM of the authorities whose certificates count."""
    certificate_file: str = ""
    """PEM of this process's own certificate, with those between it and the authority. A server needs one, with mtls
    a client too. Read again when it changes."""
    key_file: str = ""
    """PEM of its private key."""
    server_name: str = "apex"
    """Name that every server's certificate must carry, whatever address it is reached by."""
    token_file: str = ""
    """File with a secret that all processes of the installation share: sent with every call, demanded of every caller.
    Without tls anybody on the network can read it. Empty = none."""

    def __post_init__(self) -> None:
        if self.mode == "none":
            for name in ("ca_file", "certificate_file", "key_file"):
                if getattr(self, name):
                    raise ConfigError(
                        f"security.{name} is {getattr(self, name)!r}, must be empty while security.mode is 'none'; set "
                        "security.mode to 'tls' or 'mtls'"
                    )
            return
        if not self.ca_file:
            raise ConfigError(f"security.ca_file is '', must be a file while security.mode is {self.mode!r}")
        if bool(self.certificate_file) != bool(self.key_file):
            pair = ("certificate_file", "key_file")
            given, missing = pair if self.certificate_file else pair[::-1]
            raise ConfigError(f"security.{missing} is '', must be a file, because security.{given} is given")
        if self.mode == "mtls" and not self.certificate_file:
            raise ConfigError("security.certificate_file is '', must be a file while security.mode is 'mtls'")
        if not self.server_name:
            raise ConfigError("security.server_name is '', must be the name in the servers' certificates")

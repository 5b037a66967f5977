"""What the sections of a configuration are made of: shared fields, and checks that name the field."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from typing import Any

SHARED = {"shared": True}


class ConfigError(ValueError):
    """A configuration that cannot work. The message names the field, its value and what is allowed."""


def shared(default: Any) -> Any:
    """A field that is part of the configuration digest."""
    return field(default=default, metadata=SHARED)


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Raise :class:`ConfigError` naming the field unless ``condition`` holds."""
    if not condition:
        raise ConfigError(f"{name} is {value!r}, must be {allowed}")


def require_address(name: str, address: str) -> None:
    """Raise :class:`ConfigError` unless ``address`` is HOST:PORT."""
    host, colon, port = address.rpartition(":")
    valid = bool(host) and colon == ":" and port.isdigit() and int(port) < 1 << 16
    require(valid, name, address, "HOST:PORT with a port in [0, 65535]")


def require_port(name: str, port: int) -> None:
    """Raise :class:`ConfigError` unless ``port`` is one, or 0."""
    require(0 <= port < 1 << 16, name, port, "in [0, 65535]")


def replace(config: Any, **changes: Any) -> Any:
    """A copy with changed fields; validation runs again."""
    return dataclasses.replace(config, **changes)

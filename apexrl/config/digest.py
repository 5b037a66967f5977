"""What two services must agree on, as one digest, and what differs if they do not.

Only fields marked ``shared`` take part (see :mod:`apexrl.config.sections`): a peer with another learning rate is
welcome, a peer with another n is refused, because rows or parameters would mean something else to it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from typing import Any

from apexrl.config.conversion import to_plain

MAX_DIFFERENCES = 20
_MAX_VALUE_CHARACTERS = 120


def shared_fields(config: Any) -> dict[str, Any]:
    """Full path -> plain value of every shared field, for example ``{"env.stack": 4, ...}``.

    The marker on a section makes everything below it shared. The algorithm's name is always shared.
    """
    fields = dict(_walk(config, "", False))
    name = getattr(getattr(config, "algorithm", None), "name", None)
    if name is not None:
        fields["algorithm.name"] = to_plain(name)
    return fields


def shared_json(config: Any) -> str:
    """Canonical JSON of :func:`shared_fields`: sorted keys, no spaces, exact floats."""
    return json.dumps(shared_fields(config), sort_keys=True, separators=(",", ":"), allow_nan=False)


def config_digest(config: Any) -> str:
    """SHA-256 (64 hex digits) of :func:`shared_json`."""
    return hashlib.sha256(shared_json(config).encode()).hexdigest()


def difference(ours: str, theirs: str) -> list[str]:
    """Readable lines for the fields in which two :func:`shared_json` texts differ; empty if in none.

    ``theirs`` may come from the network: whatever it holds gives lines, never an exception.
    """
    a, b = _parse(ours), _parse(theirs)
    if a is None or b is None:
        return [f"the shared configuration of {'this side' if a is None else 'the peer'} is not a JSON object"]
    lines = [
        f"{key}: {_show(a, key)} here, {_show(b, key)} there"
        for key in sorted(a.keys() | b.keys())
        if key not in a or key not in b or a[key] != b[key]
    ]
    if len(lines) > MAX_DIFFERENCES:
        lines = [*lines[:MAX_DIFFERENCES], f"and {len(lines) - MAX_DIFFERENCES} more"]
    return lines


def _walk(config: Any, prefix: str, inherited: bool) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        is_shared = inherited or bool(field.metadata.get("shared"))
        if dataclasses.is_dataclass(value):
            yield from _walk(value, f"{prefix}{field.name}.", is_shared)
        elif is_shared:
            yield f"{prefix}{field.name}", to_plain(value)


def _parse(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _show(fields: dict[str, Any], key: str) -> str:
    if key not in fields:
        return "absent"
    text = json.dumps(fields[key])
    return text if len(text) <= _MAX_VALUE_CHARACTERS else text[:_MAX_VALUE_CHARACTERS] + "..."

"""Strict conversion between plain data (what YAML holds) and the dataclasses of a configuration.

Nothing is coerced but a whole number to a float and a list to a tuple. Every error names the field by its full path,
its value and what is allowed; an unknown key also names the nearest valid one.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import math
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from apexrl.config.fields import ConfigError

_YAML_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    type(None): "null",
}


def field_types(kind: Any) -> dict[str, Any]:
    """Name -> type of every field of a dataclass, with the type variables of a generic one filled in."""
    origin = get_origin(kind) or kind
    variables: dict[Any, Any] = {}
    if origin is not kind:
        variables = dict(zip(origin.__parameters__, get_args(kind), strict=True))
    hints = typing.get_type_hints(origin)
    return {f.name: variables.get(hints[f.name], hints[f.name]) for f in dataclasses.fields(origin)}


def valid_paths(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Full dotted path and type of every field below a dataclass, sections included."""
    for name, hint in field_types(kind).items():
        path = f"{prefix}{name}"
        yield path, hint
        if _is_dataclass(hint):
            yield from valid_paths(hint, f"{path}.")


def nearest_path(path: str, candidates: list[str]) -> str | None:
    """The candidate most like ``path``: one of its own section if possible, else one whose last part is alike."""
    section, _, leaf = path.rpartition(".")
    siblings = {c.rpartition(".")[2]: c for c in candidates if c.rpartition(".")[0] == section}
    close = difflib.get_close_matches(leaf, list(siblings), n=1, cutoff=0.6)
    if close:
        return siblings[close[0]]
    elsewhere = {c.rpartition(".")[2]: c for c in reversed(candidates)}
    close = difflib.get_close_matches(leaf, list(elsewhere), n=1, cutoff=0.8)
    if close:
        return elsewhere[close[0]]
    close = difflib.get_close_matches(path, candidates, n=1, cutoff=0.0)
    return close[0] if close else None


def unknown_key(path: str, candidates: list[str]) -> ConfigError:
    """The error for a key that does not exist."""
    return ConfigError(f"{path} is not a known key; the nearest valid one is {nearest_path(path, candidates)}")


def from_plain(kind: Any, value: object, path: str, candidates: list[str]) -> Any:
    """``value`` as an instance of the type ``kind``; ``path`` is its full name, ``candidates`` all valid paths."""
    origin = get_origin(kind)
    if _is_dataclass(kind):
        return _dataclass_from_plain(kind, value, path, candidates)
    if origin in (Union, types.UnionType):
        return _union_from_plain(kind, value, path, candidates)
    if origin is Literal:
        allowed = get_args(kind)
        if not any(value == a and type(value) is type(a) for a in allowed):
            raise _wrong(path, value, "one of " + ", ".join(repr(a) for a in allowed))
        return value
    if origin is tuple:
        return _tuple_from_plain(kind, value, path, candidates)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        if value not in [member.value for member in kind]:
            raise _wrong(path, value, "one of " + ", ".join(repr(member.value) for member in kind))
        return kind(value)
    if kind is Any or isinstance(kind, TypeVar):
        return value
    return _scalar_from_plain(kind, value, path)


def to_plain(value: Any) -> Any:
    """The plain data (mappings, lists, scalars) that :func:`from_plain` turns back into an equal value."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return to_plain(value.value)
    if isinstance(value, tuple | list):
        return [to_plain(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a configuration cannot hold a {type(value).__name__}: {value!r}")


def _dataclass_from_plain(kind: Any, value: object, path: str, candidates: list[str]) -> Any:
    if value is None:  # "env:" with nothing below it
        value = {}
    if not isinstance(value, Mapping):
        raise _wrong(path, value, "a section (a mapping of keys to values)")
    prefix = f"{path}." if path else ""
    known = field_types(kind)
    for key in value:
        if key not in known:
            raise unknown_key(f"{prefix}{key}", candidates)
    origin = get_origin(kind) or kind
    for f in dataclasses.fields(origin):
        has_default = f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
        if f.name not in value and not has_default:
            raise ConfigError(f"{prefix}{f.name} is missing and has no default")
    return origin(**{key: from_plain(known[key], v, f"{prefix}{key}", candidates) for key, v in value.items()})


def _union_from_plain(kind: Any, value: object, path: str, candidates: list[str]) -> Any:
    members = get_args(kind)
    if value is None and type(None) in members:
        return None
    errors: list[ConfigError] = []
    for member in members:
        if member is type(None):
            continue
        try:
            return from_plain(member, value, path, candidates)
        except ConfigError as error:
            errors.append(error)
    if len(errors) == 1 and value is not None:
        raise errors[0]
    raise _wrong(path, value, _describe(kind))


def _tuple_from_plain(kind: Any, value: object, path: str, candidates: list[str]) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _wrong(path, value, _describe(kind))
    members = get_args(kind)
    if len(members) == 2 and members[1] is Ellipsis:
        members = (members[0],) * len(value)
    if len(members) != len(value):
        raise _wrong(path, value, _describe(kind))
    return tuple(
        from_plain(member, v, f"{path}[{i}]", candidates)
        for i, (member, v) in enumerate(zip(members, value, strict=True))
    )


def _scalar_from_plain(kind: Any, value: object, path: str) -> Any:
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise _wrong(path, value, _describe(kind))
    if isinstance(value, float) and not math.isfinite(value):
        raise _wrong(path, value, "a finite number")
    return value


def _wrong(path: str, value: object, allowed: str) -> ConfigError:
    kind = "null" if value is None else type(value).__name__
    return ConfigError(f"{path or 'the file'} is {value!r} ({kind}), must be {allowed}")


def _describe(kind: Any) -> str:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(member) for member in get_args(kind))
    if origin is tuple:
        members = get_args(kind)
        if len(members) == 2 and members[1] is Ellipsis:
            return f"a list, each element {_describe(members[0])}"
        return f"a list of {len(members)}: " + ", ".join(_describe(member) for member in members)
    if origin is Literal:
        return "one of " + ", ".join(repr(a) for a in get_args(kind))
    return _YAML_NAMES.get(kind, getattr(kind, "__name__", str(kind)))


def _is_dataclass(kind: Any) -> bool:
    return dataclasses.is_dataclass(get_origin(kind) or kind)

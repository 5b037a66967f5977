"""The one form of every result: ``benchmarks/results/SUBJECT.json``, checked and written as a whole."""

from __future__ import annotations

import datetime
import json
import math
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apexrl.runtime.atomic_files import replace_file
from benchmarks.machine import ROOT, commit, machine, versions

RESULTS = ROOT / "benchmarks" / "results"

Goals = Mapping[str, Mapping[str, float]]
"""Metric -> bound, e.g. ``{"iqm": {"at_least": 475}}``. Bounds are ``at_least`` and ``at_most``."""

_FIELDS: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "command": str,
    "date": str,
    "commit": dict,
    "machine": dict,
    "versions": dict,
    "seeds": list,
    "metrics": dict,
    "goals": dict,
    "met": (bool, type(None)),
    "notes": str,
}
_NESTED: dict[str, dict[str, type | tuple[type, ...]]] = {
    "commit": {"hash": str, "dirty": bool},
    "machine": {"cpu": str, "cores": int, "memory_gb": (int, float)},
    "versions": {"python": str, "torch": str, "numpy": str, "grpcio": str, "gymnasium": str, "ale_py": str},
}
_NAME = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")
_BOUNDS = ("at_least", "at_most")


class RecordError(ValueError):
    """A result that is not in the form; the message names the field."""


def goals_met(metrics: Mapping[str, Any], goals: Goals) -> bool | None:
    """Whether every metric keeps its bounds; None if there are no goals. A metric that is None keeps none.

    Raises:
        RecordError: a goal names a metric that is not there, or an unknown bound.
    """
    if not goals:
        return None
    return all(_keeps(metrics, name, kind, bound) for name, bounds in goals.items() for kind, bound in bounds.items())


def make_record(
    name: str,
    *,
    metrics: Mapping[str, Any],
    goals: Goals,
    seeds: Sequence[int] = (),
    notes: str = "",
    command: str | None = None,
) -> dict[str, Any]:
    """A valid record of a measurement that has just been made here.

    Args:
        name: the subject; also the file's name.
        metrics: name -> number, text, None, or lists and dictionaries of these.
        goals: see :data:`Goals`.
        seeds: that the measurement ran with.
        notes: how to read it.
        command: that made it; this process's by default.

    Raises:
        RecordError: see :func:`validate`.
    """
    record = {
        "name": name,
        "command": command if command is not None else this_command(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "seeds": list(seeds),
        "metrics": dict(metrics),
        "goals": {metric: dict(bounds) for metric, bounds in goals.items()},
        "met": goals_met(metrics, goals),
        "notes": notes,
    }
    validate(record)
    return record


def this_command() -> str:
    """The command line of this process as one would type it in the repository's root."""
    script = Path(sys.argv[0]).resolve()
    shown = script.relative_to(ROOT) if script.is_relative_to(ROOT) else script
    return shlex.join(["python", str(shown), *sys.argv[1:]])


def write_record(record: Mapping[str, Any], directory: Path = RESULTS) -> Path:
    """Write a record to ``directory/NAME.json``; readers see the old file or the new one.

    Raises:
        RecordError: the record is not valid; the file that is there stays.
    """
    validate(record)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{record['name']}.json"
    replace_file(path, (json.dumps(record, indent=2, allow_nan=False) + "\n").encode())
    return path


def read_record(name: str, directory: Path = RESULTS) -> dict[str, Any]:
    """The record of a subject.

    Raises:
        RecordError: there is none, or it is not valid.
    """
    path = directory / f"{name}.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: not readable ({error})") from error
    validate(record)
    return dict(record)


def validate(record: Any) -> None:
    """Check form, types, finiteness, and that ``met`` says what metrics and goals say.

    Raises:
        RecordError: naming the field, its value and what is allowed.
    """
    if not isinstance(record, Mapping):
        raise RecordError(f"the record is a {type(record).__name__}, must be an object")
    _check_fields("", record, _FIELDS)
    if unknown := set(record) - set(_FIELDS):
        raise RecordError(f"{sorted(unknown)[0]}: unknown field; the fields are {', '.join(_FIELDS)}")
    for field, nested in _NESTED.items():
        _check_fields(f"{field}.", record[field], nested)
    if not _NAME.fullmatch(record["name"]):
        raise RecordError(f"name is {record['name']!r}, must be words of a-z and 0-9 joined by '_'")
    try:
        datetime.datetime.fromisoformat(record["date"])
    except ValueError:
        raise RecordError(f"date is {record['date']!r}, must be an ISO 8601 date and time") from None
    if not all(type(seed) is int for seed in record["seeds"]):
        raise RecordError(f"seeds is {record['seeds']!r}, must be a list of integers")
    if not record["metrics"]:
        raise RecordError("metrics is empty")
    _check_values("metrics", record["metrics"])
    met = goals_met(record["metrics"], record["goals"])
    if record["met"] is not met:
        raise RecordError(f"met is {record['met']}, but metrics and goals say {met}")


def _check_fields(prefix: str, values: Mapping[str, Any], fields: Mapping[str, type | tuple[type, ...]]) -> None:
    for field, kind in fields.items():
        if field not in values:
            raise RecordError(f"{prefix}{field} is missing")
        value = values[field]
        kinds = kind if isinstance(kind, tuple) else (kind,)
        # A bool is an int to Python, but not to whoever reads the file.
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise RecordError(f"{prefix}{field} is {value!r}, must be of type {' or '.join(k.__name__ for k in kinds)}")


def _check_values(path: str, value: Any) -> None:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise RecordError(f"{path}: key {name!r} is not text")
            _check_values(f"{path}.{name}", inner)
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            _check_values(f"{path}[{i}]", inner)
    elif isinstance(value, float) and not math.isfinite(value):
        raise RecordError(f"{path} is {value}, must be finite; write null where there is no value")
    elif not isinstance(value, str | int | float | bool | type(None)):
        raise RecordError(f"{path} is a {type(value).__name__}, must be a number, text, null, list or object")


def _keeps(metrics: Mapping[str, Any], name: str, kind: str, bound: float) -> bool:
    if name not in metrics:
        raise RecordError(f"goals.{name}: there is no such metric; the metrics are {', '.join(metrics)}")
    if kind not in _BOUNDS:
        raise RecordError(f"goals.{name}.{kind}: unknown bound, must be one of {', '.join(_BOUNDS)}")
    value = metrics[name]
    if value is None:
        return False
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RecordError(f"metrics.{name} is {value!r}, must be a number or null, because it has a goal")
    return value >= bound if kind == "at_least" else value <= bound

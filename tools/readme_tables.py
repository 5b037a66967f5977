"""Fills the tables of results in README.md from ``benchmarks/results/*.json``, so that no number is typed by hand.

A region stands between ``<!-- results:NAME -->`` and ``<!-- /results:NAME -->``, each on a line of its own. NAME is a
file's name without ``.json``, or what such names begin with before an underscore, or ``all``.

    python tools/readme_tables.py           rewrite the regions
    python tools/readme_tables.py --check   exit 1 if the regions are not what the results give

CONTRIBUTING.md describes the files.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import operator
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"

FIELDS: dict[str, type] = {
    "name": str,
    "command": str,
    "date": str,
    "commit": str,
    "machine": dict,
    "versions": dict,
    "seeds": list,
    "metrics": dict,
    "goals": dict,
    "met": bool,
}
MACHINE_FIELDS: dict[str, tuple[type, ...]] = {"cpu": (str,), "cores": (int,), "memory_gb": (int, float)}
COMPARISONS: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le}
HEADER = ("Result", "Metric", "Measured", "Goal", "Met", "Seeds", "Machine", "Date, commit")
NOTHING_YET = "No results are recorded in `benchmarks/results/` yet."

_MARKER = re.compile(r"^<!-- (?P<close>/?)results:(?P<name>[a-z0-9_]+) -->$")
_GOAL = re.compile(r"^(?P<comparison>>=|<=) (?P<bound>-?[0-9]+(\.[0-9]+)?)$")


class ResultError(ValueError):
    """A file of results, or a region of the README, is not as it must be. The message names the file and the field."""


@dataclass(frozen=True)
class Result:
    """One file of results."""

    name: str
    command: str
    date: str
    commit: str
    machine: str
    seeds: int
    metrics: dict[str, tuple[float, ...]]
    """Values, one per seed or just one."""
    goals: dict[str, str]


def read_results(directory: Path) -> list[Result]:
    """All results of a directory, by name; none if there is no directory.

    Raises:
        ResultError: a file is malformed, or says of its goals what its numbers do not.
    """
    return [read_result(path) for path in sorted(directory.glob("*.json"))]


def read_result(path: Path) -> Result:
    """One file of results.

    Raises:
        ResultError: naming the field, its value and what is allowed.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ResultError(f"{path.name}: not valid JSON: {error}") from error
    _require(isinstance(raw, dict), path, "the file", type(raw).__name__, "an object")
    _require(set(raw) == set(FIELDS), path, "fields", sorted(raw), f"exactly {sorted(FIELDS)}")
    for field, kind in FIELDS.items():
        _require(isinstance(raw[field], kind), path, field, raw[field], f"a {kind.__name__}")
    _require(raw["name"] == path.stem, path, "name", raw["name"], f"the file's, {path.stem!r}")
    _require(_is_date(raw["date"]), path, "date", raw["date"], "YYYY-MM-DD")
    for field in ("command", "commit"):
        _require(bool(raw[field].strip()), path, field, raw[field], "not empty")
    _require(bool(raw["seeds"]) and all(type(s) is int for s in raw["seeds"]), path, "seeds", raw["seeds"], "integers")
    metrics = {name: _values(path, f"metrics.{name}", value) for name, value in raw["metrics"].items()}
    result = Result(
        name=raw["name"],
        command=raw["command"],
        date=raw["date"],
        commit=raw["commit"],
        machine=_machine(path, raw["machine"]),
        seeds=len(raw["seeds"]),
        metrics=metrics,
        goals=raw["goals"],
    )
    _check_goals(path, result, raw["met"])
    return result


def render_table(results: Sequence[Result]) -> str:
    """A Markdown table with one row per metric, and a sentence where there are no results."""
    if not results:
        return NOTHING_YET
    lines = [_row(HEADER), _row(["---"] * len(HEADER))]
    for result in results:
        for metric in result.metrics:
            goal = result.goals.get(metric, "")
            lines.append(
                _row(
                    (
                        f"`{result.name}`",
                        metric.replace("_", " "),
                        _measured(result.metrics[metric]),
                        goal.replace(">=", "≥").replace("<=", "≤"),
                        ("yes" if is_met(goal, result.metrics[metric]) else "**no**") if goal else "",
                        str(result.seeds),
                        result.machine,
                        f"{result.date}, {result.commit[:10]}",
                    )
                )
            )
    commands = [f"`{result.name}`: `{result.command}`" for result in results]
    return "\n".join([*lines, "", "Commands: " + "; ".join(commands) + "."])


def render_readme(text: str, results: Sequence[Result]) -> str:
    """``text`` with every marked region filled anew.

    Raises:
        ResultError: a region that does not begin or end, or two that overlap.
    """
    lines: list[str] = []
    opened = ""
    for number, line in enumerate(text.splitlines(), start=1):
        marker = _MARKER.match(line.strip())
        if marker is None:
            if not opened:
                lines.append(line)
            continue
        name, closes = marker["name"], bool(marker["close"])
        if closes != bool(opened) or (closes and name != opened):
            expected = f"<!-- /results:{opened} -->" if opened else f"<!-- results:{name} -->"
            raise ResultError(f"line {number} is {line.strip()!r}, must be {expected!r}")
        lines.append(line)
        if closes:
            opened = ""
        else:
            opened = name
            lines += ["", render_table(list(select(results, name))), ""]
    if opened:
        raise ResultError(f"the region <!-- results:{opened} --> has no end")
    return "\n".join(lines) + "\n"


def select(results: Sequence[Result], name: str) -> Iterator[Result]:
    """The results that a region shows."""
    return (r for r in results if name == "all" or r.name == name or r.name.startswith(f"{name}_"))


def is_met(goal: str, values: Sequence[float]) -> bool:
    """Whether the mean of ``values`` reaches a goal like ">= 18"."""
    match = _GOAL.match(goal)
    assert match is not None, goal  # checked when the file was read
    return COMPARISONS[match["comparison"]](statistics.fmean(values), float(match["bound"]))


def main(arguments: Sequence[str] | None = None, *, readme: Path = README, results: Path = RESULTS) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description="Fill the tables of results in README.md.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the tables are not up to date")
    options = parser.parse_args(arguments)
    try:
        old = readme.read_text(encoding="utf-8")
        new = render_readme(old, read_results(results))
    except ResultError as error:
        print(f"readme_tables: {error}", file=sys.stderr)
        return 1
    if old == new:
        return 0
    if options.check:
        print(f"{readme.name} is not up to date; run: python tools/readme_tables.py", file=sys.stderr)
        return 1
    readme.write_text(new, encoding="utf-8")
    return 0


def _check_goals(path: Path, result: Result, met: bool) -> None:
    for metric, goal in result.goals.items():
        _require(metric in result.metrics, path, f"goals.{metric}", goal, "for one of the metrics")
        valid = isinstance(goal, str) and _GOAL.match(goal) is not None
        _require(valid, path, f"goals.{metric}", goal, 'like ">= 18" or "<= 60.5"')
    reached = all(is_met(goal, result.metrics[metric]) for metric, goal in result.goals.items())
    _require(met == reached, path, "met", met, f"{reached}, which is what metrics and goals give")


def _machine(path: Path, machine: dict[str, Any]) -> str:
    """``machine`` in words. Further fields (a GPU) are shown as they are."""
    for field, kinds in MACHINE_FIELDS.items():
        value = machine.get(field)
        valid = isinstance(value, kinds) and not isinstance(value, bool)
        _require(valid, path, f"machine.{field}", value, " or ".join(k.__name__ for k in kinds))
    extra = "".join(f", {name} {machine[name]}" for name in sorted(set(machine) - set(MACHINE_FIELDS)))
    return f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_gb']:g} GB{extra}"


def _values(path: Path, field: str, value: Any) -> tuple[float, ...]:
    """One number, or a list with one number per seed."""
    values: list[Any] = value if isinstance(value, list) else [value]
    valid = bool(values) and all(
        isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values
    )
    _require(valid, path, field, value, "a finite number, or a list of them")
    return tuple(float(v) for v in values)


def _measured(values: Sequence[float]) -> str:
    mean = _number(statistics.fmean(values))
    return mean if len(values) == 1 else f"{mean} ± {_number(statistics.stdev(values))} (sd of {len(values)})"


def _number(value: float) -> str:
    """Four digits that people can read: 12,345 and 19.25 and 0.0012."""
    if value.is_integer() or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _is_date(text: str) -> bool:
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _require(condition: bool, path: Path, field: str, value: object, allowed: str) -> None:
    if not condition:
        raise ResultError(f"{path.name}: {field} is {value!r}, must be {allowed}")


if __name__ == "__main__":
    sys.exit(main())

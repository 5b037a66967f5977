"""Fills the tables of results in README.md from ``benchmarks/results/*.json``, so that no number is typed by hand.

A region stands between ``<!-- results:NAME -->`` and ``<!-- /results:NAME -->``, each on a line of its own. NAME is
``learning`` (returns over seeds, what ``benchmarks/learning.py`` writes) or ``measurements`` (everything else).

    python tools/readme_tables.py           rewrite the regions
    python tools/readme_tables.py --check   exit 1 if the regions are not what the results give
    python tools/readme_tables.py --print D print the table of measurements for other results

The form of the files is that of :mod:`benchmarks.record`; CONTRIBUTING.md describes it.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS, RecordError, goals_met, read_record

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"

NOTHING_YET = "None is recorded yet."
LEARNING_HEADER = (
    "Result",
    "Return: IQM over seeds [95 % interval]",
    "Seeds",
    "Threshold",
    "Time to it, median / slowest",
    "Frames/s",
    "Goals met",
    "Machine",
    "Date, commit",
)
MEASUREMENTS_HEADER = ("Result", "Metric", "Measured", "Goal", "Met", "Machine", "Date, commit")
#: Words in the names of metrics that are always shown, as are those with a goal.
HEADLINES = {"fraction", "ratio"}
#: More spreads than this are for readers of the file.
MOST_SPREADS = 4
SPREAD_FIELDS = {"median", "min", "max"}
BOUND_SIGNS = {"at_least": "≥", "at_most": "≤"}

Record = Mapping[str, Any]

_MARKER = re.compile(r"^<!-- (?P<close>/?)results:(?P<name>[a-z0-9_]+) -->$")


class RegionError(ValueError):
    """The regions of the README are not as they must be. The message names the line."""


def read_records(directory: Path) -> list[Record]:
    """All results of a directory, by name; none if there is no directory.

    Raises:
        RecordError: a file is not in the form, or is named otherwise than its subject.
    """
    records: list[Record] = []
    for path in sorted(directory.glob("*.json")):
        record = read_record(path.stem, directory)
        if record["name"] != path.stem:
            raise RecordError(f"{path}: name is {record['name']!r}, must be the file's, {path.stem!r}")
        records.append(record)
    return records


def is_learning(record: Record) -> bool:
    """Whether a result is about returns over seeds."""
    return "iqm" in record["metrics"]


def learning_table(records: Sequence[Record]) -> str:
    """A row for each learning proof, and the commands behind them."""
    rows = []
    for record in filter(is_learning, records):
        get = record["metrics"].get
        rows.append(
            (
                f"`{record['name']}`",
                f"{_number(get('iqm'))} [{_number(get('iqm_ci95_low'))}, {_number(get('iqm_ci95_high'))}]",
                ", ".join(map(str, record["seeds"])),
                _number(get("threshold")),
                f"{_seconds(get('seconds_to_threshold_median'))} / {_seconds(get('seconds_to_threshold_max'))}",
                _number(get("frames_per_second")),
                _met(record["met"]),
                _machine(record),
                _origin(record),
            )
        )
    return _table(LEARNING_HEADER, rows, [r for r in records if is_learning(r)])


def measurements_table(records: Sequence[Record]) -> str:
    """A row for each number of a measurement that matters, and the commands behind them."""
    chosen = [record for record in records if not is_learning(record)]
    rows = []
    for record in chosen:
        for metric, label, measured in _measured(record):
            bounds = record["goals"].get(metric, {})
            met = goals_met(record["metrics"], {metric: bounds}) if bounds else None
            goal = ", ".join(f"{BOUND_SIGNS[kind]} {_number(bound)}" for kind, bound in bounds.items())
            cells = (f"`{record['name']}`", label, measured, goal, _met(met), _machine(record), _origin(record))
            rows.append(cells)
    return _table(MEASUREMENTS_HEADER, rows, chosen)


TABLES: dict[str, Callable[[Sequence[Record]], str]] = {
    "learning": learning_table,
    "measurements": measurements_table,
}


def render_readme(text: str, records: Sequence[Record]) -> str:
    """``text`` with every marked region filled anew.

    Raises:
        RegionError: a region of an unknown name, one that does not begin or end, or two that overlap.
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
        if name not in TABLES:
            raise RegionError(f"line {number}: the region is {name!r}, must be one of {', '.join(TABLES)}")
        if closes != bool(opened) or (closes and name != opened):
            expected = f"<!-- /results:{opened} -->" if opened else f"<!-- results:{name} -->"
            raise RegionError(f"line {number} is {line.strip()!r}, must be {expected!r}")
        lines.append(line)
        opened = "" if closes else name
        if opened:
            lines += ["", TABLES[name](records), ""]
    if opened:
        raise RegionError(f"the region <!-- results:{opened} --> has no end")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None, *, readme: Path = README, results: Path = RESULTS) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description="Fill the tables of results in README.md.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the tables are not up to date")
    parser.add_argument("--print", type=Path, metavar="DIR", help="only print the table of the results in DIR")
    options = parser.parse_args(arguments)
    if options.print is not None:
        try:
            print(measurements_table(read_records(options.print)))
        except RecordError as error:
            print(f"readme_tables: {error}", file=sys.stderr)
            return 1
        return 0
    try:
        old = readme.read_text(encoding="utf-8")
        new = render_readme(old, read_records(results))
    except (RecordError, RegionError) as error:
        print(f"readme_tables: {error}", file=sys.stderr)
        return 1
    if old == new:
        return 0
    if options.check:
        print(f"{readme.name} is not up to date; run: python tools/readme_tables.py", file=sys.stderr)
        return 1
    readme.write_text(new, encoding="utf-8")
    return 0


def _measured(record: Record) -> Iterator[tuple[str, str, str]]:
    """(metric, what to call it, value) of what is shown: goals, headlines, few spreads; or all numbers."""
    metrics: Mapping[str, Any] = record["metrics"]
    numbers = [(metric, label, text) for metric, value in metrics.items() for label, text in _values(metric, value)]
    spreads = {one[0] for one in numbers if isinstance(metrics[one[0]], Mapping)}
    few = spreads if sum(one[0] in spreads for one in numbers) <= MOST_SPREADS else set()
    headlines = {metric for metric in metrics if HEADLINES & set(metric.split("_"))}
    shown = [one for one in numbers if one[0] in {*record["goals"], *headlines, *few}]
    yield from shown or numbers


def _values(metric: str, value: Any) -> Iterator[tuple[str, str]]:
    """Label and text of a number, of a spread, or of each spread in a dictionary; nothing of anything else."""
    label = metric.replace("_", " ")
    if isinstance(value, Mapping):
        if set(value) == SPREAD_FIELDS:
            yield label, f"{_number(value['median'])} ({_number(value['min'])} to {_number(value['max'])})"
            return
        for name, inner in value.items():
            if isinstance(inner, Mapping) and set(inner) == SPREAD_FIELDS:
                yield from _values(f"{metric}, {name}", inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield label, _number(value)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], records: Sequence[Record]) -> str:
    if not rows:
        return NOTHING_YET
    lines = [_row(header), _row(["---"] * len(header)), *map(_row, rows)]
    commands = "; ".join(f"`{record['name']}`: `{record['command']}`" for record in records)
    return "\n".join([*lines, "", f"Commands: {commands}."])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _machine(record: Record) -> str:
    machine = record["machine"]
    gpu = f", {machine['gpu']}" if "gpu" in machine else ""
    return f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_gb']:g} GB{gpu}"


def _origin(record: Record) -> str:
    commit = record["commit"]
    return f"{record['date'][:10]}, {commit['hash'][:10] or 'no commit'}{' and changes' if commit['dirty'] else ''}"


def _met(met: bool | None) -> str:
    return "" if met is None else "yes" if met else "**no**"


def _seconds(value: float | None) -> str:
    """Seconds as people read them; null = never."""
    if value is None:
        return "never"
    return f"{value:.0f} s" if value < 120 else f"{value / 60:.0f} min"


def _number(value: float | None) -> str:
    """A few digits that people can read: 12,345 and 19.25 and 0.0012."""
    if value is None:
        return "none"
    if float(value).is_integer() or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


if __name__ == "__main__":
    sys.exit(main())

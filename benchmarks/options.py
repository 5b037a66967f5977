"""Command line and ending that the throughput benchmarks share."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from apexrl.algorithms import CONFIGS
from apexrl.config import ConfigError, ExperimentConfig, load_experiment
from benchmarks.record import RESULTS, Goals, make_record, write_record


def parser(
    description: str | None, *, seconds: float, windows: int, fixed_goals: bool = False
) -> argparse.ArgumentParser:
    """A parser with what every throughput benchmark takes; unknown arguments are overrides of the configuration.

    With ``fixed_goals`` the benchmark sets its goals itself.
    """
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "config",
        type=Path,
        help="YAML file of the experiment; its fields can be set behind it, e.g. --learner.batch-size 512",
    )
    made.add_argument("--seconds", type=float, default=seconds, help="length of a window (%(default)s)")
    made.add_argument("--windows", type=int, default=windows, help="windows per program (%(default)s)")
    if not fixed_goals:
        made.add_argument("--at-least", type=float, help="goal for the result's fraction, kept in the result")
    add_write(made)
    return made


def add_write(made: argparse.ArgumentParser) -> None:
    """The option that keeps the result."""
    made.add_argument(
        "--write",
        type=Path,
        nargs="?",
        const=RESULTS,
        metavar="DIR",
        help="write SUBJECT.json to this directory (benchmarks/results)",
    )


def load(config: Path, overrides: Sequence[str], own: Sequence[str] = ()) -> ExperimentConfig[Any]:
    """The experiment in ``config``; what the benchmark sets itself (``own``) may be overridden by the user."""
    return load_experiment(config, [*own, *overrides], algorithm_configs=CONFIGS)


def fraction_goal(at_least: float | None) -> Goals:
    return {} if at_least is None else {"fraction": {"at_least": at_least}}


def conclude(
    subject: str, *, metrics: Mapping[str, Any], goals: Goals, seeds: Sequence[int], notes: str, write: Path | None
) -> int:
    """Print a measurement, write its record to a directory if asked to.

    Returns:
        The exit code: 1 if a goal is not met.
    """
    record = make_record(subject, metrics=metrics, goals=goals, seeds=seeds, notes=notes)
    print(json.dumps({"name": subject, "metrics": record["metrics"], "met": record["met"]}, indent=2))
    if write is not None:
        print(write_record(record, write))
    return 1 if record["met"] is False else 0


def run(main: Callable[[], int]) -> int:
    """Run a benchmark; a configuration that cannot work is one line on stderr and exit code 2."""
    try:
        return main()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2

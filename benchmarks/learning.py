"""Learning proofs: train real services from nothing, several seeds, and check the return they reach.

    python benchmarks/learning.py cartpole
    python benchmarks/learning.py pong --seeds 1
    python benchmarks/learning.py pong --seeds 2 --append

A seed that is done is kept under ``runs/learning`` and is not run again while source code and configuration are the
same. The result goes to ``benchmarks/results/SUBJECT.json``, the curves to ``docs/images/SUBJECT.png``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apexrl.runtime.run_directory import RunDirectory
from benchmarks.curves import draw_curves
from benchmarks.learning_run import (
    Outcome,
    RunFailedError,
    config_digest,
    load_outcome,
    run_seed,
    seed_directory,
)
from benchmarks.learning_summary import notes, summarize, table
from benchmarks.machine import ROOT, source_digest
from benchmarks.record import RESULTS, goals_met, make_record, write_record
from benchmarks.subjects import SUBJECTS, Subject

WORK = ROOT / "runs" / "learning"
IMAGES = ROOT / "docs" / "images"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the exit code is 0 if the result's goals are met, 1 if not, 2 if a run failed."""
    parser = argparse.ArgumentParser(
        prog="learning.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("subject", choices=sorted(SUBJECTS))
    parser.add_argument("--seeds", type=parse_seeds, help="which to run, e.g. 1,2,3; all of the subject's by default")
    parser.add_argument(
        "--append",
        action="store_true",
        help="count the other seeds that are done under this configuration as well, whatever the source code was",
    )
    parser.add_argument("--force", action="store_true", help="run seeds again that are done")
    parser.add_argument("--no-write", action="store_true", help="only print; leave results and pictures as they are")
    parser.add_argument("--work-dir", type=Path, default=WORK, help="where runs are kept (%(default)s)")
    options = parser.parse_args(arguments)
    subject = SUBJECTS[options.subject]
    seeds = options.seeds or list(subject.seeds)
    try:
        outcomes = [obtain(subject, seed, options.work_dir, force=options.force) for seed in seeds]
    except RunFailedError as error:
        print(f"learning.py: {error}", file=sys.stderr)
        return 2
    if options.append:
        outcomes += others(subject, set(seeds), options.work_dir)
    outcomes.sort(key=lambda one: one.seed)
    metrics = summarize(subject, outcomes)
    print(table(subject, metrics))
    met = goals_met(metrics, subject.goals)
    print("goals met" if met else "goals NOT met")
    if not options.no_write:
        write(subject, outcomes, metrics, options.work_dir)
    return 0 if met else 1


def parse_seeds(text: str) -> list[int]:
    """Seeds of ``1,2,3``; raises :class:`argparse.ArgumentTypeError`."""
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of integers like 1,2,3") from None
    if len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} must hold each seed once, and none below 0")
    return seeds


def obtain(subject: Subject, seed: int, work: Path, *, force: bool) -> Outcome:
    """The outcome of a seed: the kept one if source code and configuration are still the same, else a new run."""
    directory = seed_directory(work, subject, seed)
    kept = load_outcome(directory)
    present = (source_digest(), config_digest(subject))
    if kept is not None and not force and (kept.source_digest, kept.config_digest) == present:
        print(f"{subject.name}, seed {seed}: done before, not run again", file=sys.stderr)
        return kept
    print(f"{subject.name}, seed {seed}: training in {directory}", file=sys.stderr, flush=True)
    return run_seed(subject, seed, directory)


def others(subject: Subject, seeds: set[int], work: Path) -> list[Outcome]:
    """Outcomes of seeds besides ``seeds`` that are kept and ran under the present configuration."""
    digest = config_digest(subject)
    found = []
    for directory in sorted((work / subject.name).glob("seed-*")):
        outcome = load_outcome(directory)
        if outcome is None or outcome.seed in seeds:
            continue
        if outcome.config_digest == digest:
            found.append(outcome)
        else:
            print(f"{subject.name}, seed {outcome.seed}: another configuration, left out", file=sys.stderr)
    return found


def write(
    subject: Subject,
    outcomes: Sequence[Outcome],
    metrics: Mapping[str, Any],
    work: Path,
    *,
    results: Path = RESULTS,
    images: Path = IMAGES,
) -> None:
    """Write the result and the picture of all curves."""
    seeds = [outcome.seed for outcome in outcomes]
    record = make_record(subject.name, metrics=metrics, goals=subject.goals, seeds=seeds, notes=notes(outcomes))
    print(write_record(record, results))
    runs = {seed: RunDirectory(seed_directory(work, subject, seed) / "run").metrics_csv for seed in seeds}
    png = images / f"{subject.name}.png"
    if draw_curves(runs, png, title=subject.title, threshold=subject.threshold):
        print(png)


if __name__ == "__main__":
    sys.exit(main())

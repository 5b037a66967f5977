"""From the outcomes of all seeds to one result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.aggregation import bootstrap_interval, iqm
from benchmarks.learning_run import Outcome
from benchmarks.subjects import Subject


def summarize(subject: Subject, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The metrics of a learning proof. One seed's score is its mean return over the final greedy episodes.

    Args:
        subject: what was learned.
        outcomes: one per seed.

    Raises:
        ValueError: there are no outcomes.
    """
    scores = [outcome.mean_return for outcome in outcomes]
    low, high = bootstrap_interval({subject.name: scores})
    reached = [outcome for outcome in outcomes if outcome.threshold_seconds is not None]
    return {
        "iqm": round(iqm(scores), 4),
        "iqm_ci95_low": round(low, 4),
        "iqm_ci95_high": round(high, 4),
        "median": round(float(np.median(scores)), 4),
        "min": round(min(scores), 4),
        "max": round(max(scores), 4),
        "num_seeds": len(outcomes),
        "num_seeds_reaching": len(reached),
        "threshold": subject.threshold,
        "random_return": subject.random_return,
        "frames_max": max(outcome.frames for outcome in outcomes),
        "seconds_to_threshold_median": _median([outcome.threshold_seconds for outcome in outcomes]),
        "seconds_to_threshold_max": _maximum([outcome.threshold_seconds for outcome in outcomes]),
        "frames_to_threshold_median": _median([outcome.threshold_frames for outcome in outcomes]),
        "updates_to_threshold_median": _median([outcome.threshold_updates for outcome in outcomes]),
        "wall_seconds_median": _median([outcome.wall_seconds for outcome in outcomes]),
        "frames_per_second": _median([outcome.frames_per_second for outcome in outcomes]),
        "updates_per_second": _median([outcome.updates_per_second for outcome in outcomes]),
        "evaluation_episodes": subject.evaluation_episodes,
        "evaluation_epsilon": outcomes[0].evaluation_epsilon,
        "per_seed": [_row(outcome) for outcome in outcomes],
    }


def notes(outcomes: Sequence[Outcome]) -> str:
    """How to read the result."""
    lines = [
        "A seed's score is its mean return over greedy episodes on the final parameters, played after the run with the "
        "stated epsilon; rewards unclipped, whole games. Time to the threshold runs from the launch of all processes "
        "to the report of the evaluator's first evaluation at or above it; runs that never got there count as "
        "infinite (null). Rates are means over a whole run, its start included."
    ]
    stopped = [outcome.seed for outcome in outcomes if not outcome.finished]
    if stopped:
        lines.append(f"Stopped at the wall-clock limit: seeds {', '.join(map(str, stopped))}.")
    if len({outcome.source_digest for outcome in outcomes}) > 1:
        states = ", ".join(f"seed {outcome.seed} {_state(outcome)}" for outcome in outcomes)
        lines.append(f"The seeds ran at different states of the source code: {states}.")
    return " ".join(lines)


def table(subject: Subject, metrics: dict[str, Any]) -> str:
    """The result as lines for a terminal."""
    goal = f"to {subject.threshold:g}"
    head = f"{'seed':>6} {'return':>18} {'frames':>12} {'updates':>10} {'frames/s':>9} {'wall s':>8} {goal:>18}"
    lines = [subject.title, head]
    for row in metrics["per_seed"]:
        seconds, frames = row["threshold_seconds"], row["threshold_frames"]
        reached = f"{seconds:.0f} s, {frames:,}" if seconds is not None else "never"
        score = f"{row['return_mean']:.2f} ± {row['return_std']:.2f}"
        lines.append(
            f"{row['seed']:>6} {score:>18} {row['frames']:>12,} {row['updates']:>10,} "
            f"{row['frames_per_second']:>9,.0f} {row['wall_seconds']:>8,.0f} {reached:>18}"
        )
    lines.append(
        f"IQM {metrics['iqm']:.2f}, 95 % interval [{metrics['iqm_ci95_low']:.2f}, {metrics['iqm_ci95_high']:.2f}] of "
        f"{metrics['num_seeds']} seeds; threshold {subject.threshold:g}, random play {subject.random_return:g}"
    )
    return "\n".join(lines)


def _row(outcome: Outcome) -> dict[str, Any]:
    returns = np.array(outcome.evaluation_returns)
    return {
        "seed": outcome.seed,
        "return_mean": round(float(returns.mean()), 4),
        "return_std": round(float(returns.std()), 4),
        "return_min": float(returns.min()),
        "return_max": float(returns.max()),
        "frames": outcome.frames,
        "env_steps": outcome.env_steps,
        "updates": outcome.updates,
        "samples_per_insert": outcome.samples_per_insert,
        "frames_per_second": outcome.frames_per_second,
        "updates_per_second": outcome.updates_per_second,
        "wall_seconds": outcome.wall_seconds,
        "threshold_seconds": outcome.threshold_seconds,
        "threshold_frames": outcome.threshold_frames,
        "threshold_updates": outcome.threshold_updates,
        "finished": outcome.finished,
        "commit": _state(outcome),
    }


def _state(outcome: Outcome) -> str:
    return f"{outcome.commit['hash'][:12]}{'-dirty' if outcome.commit['dirty'] else ''}"


def _median(values: Sequence[float | None]) -> float | None:
    return _number(float(np.median([math.inf if value is None else value for value in values])))


def _maximum(values: Sequence[float | None]) -> float | None:
    return _number(max(math.inf if value is None else float(value) for value in values))


def _number(value: float) -> float | None:
    # The median of two values of which one is infinite is infinite too; inf - inf cannot occur.
    return round(value, 2) if math.isfinite(value) else None

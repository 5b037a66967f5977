"""Learning curves of several seeds: when a threshold was reached, and the picture of all of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from apexrl.telemetry.experiment_log import read_metrics

Table = Mapping[str, npt.NDArray[np.float64]]
"""Columns of a ``metrics.csv``, see :func:`apexrl.telemetry.experiment_log.read_metrics`."""


class Reached(NamedTuple):
    """The first evaluation whose mean return was at or above a threshold."""

    seconds: float
    """Learning wall-clock when it was reported."""
    frames: int
    """Environment frames of all actors by then."""
    updates: int
    """Learner updates behind the parameters that were evaluated."""
    evaluator_return: float


def first_reaching(table: Table, threshold: float) -> Reached | None:
    """The first evaluation at or above ``threshold``; None if there is none."""
    returns = table["evaluator_return"]
    rows = np.flatnonzero(np.isfinite(returns) & (returns >= threshold))
    if not len(rows):
        return None
    row = rows[0]
    updates = table["evaluator_updates"][row]
    if not np.isfinite(updates):
        updates = table["learner_updates"][row]
    return Reached(
        seconds=float(table["wall_seconds"][row]),
        frames=int(table["global_frames"][row]),
        updates=int(updates),
        evaluator_return=float(returns[row]),
    )


class Progress(NamedTuple):
    """Where a run stood at its last report."""

    seconds: float
    frames: int
    updates: int
    samples_per_insert: float | None
    evaluations: int
    best_return: float | None
    """Highest mean of an evaluation."""


def last_progress(table: Table) -> Progress:
    """Where the run stood at its last report.

    Raises:
        ValueError: there is no report.
    """
    if not len(table["global_frames"]):
        raise ValueError("the run has reported nothing; its logs say why")
    returns = table["evaluator_return"][np.isfinite(table["evaluator_return"])]
    ratio = table["samples_per_insert"][np.isfinite(table["samples_per_insert"])]
    return Progress(
        seconds=float(np.nanmax(table["wall_seconds"])),
        frames=int(np.nanmax(table["global_frames"])),
        updates=int(np.nanmax(table["learner_updates"])),
        samples_per_insert=float(ratio[-1]) if len(ratio) else None,
        evaluations=len(returns),
        best_return=float(returns.max()) if len(returns) else None,
    )


def draw_curves(runs: Mapping[int, Path], png: Path, *, title: str, threshold: float) -> bool:
    """Draw the evaluator's mean return of every seed against frames and against wall-clock.

    Args:
        runs: seed -> ``metrics.csv``.
        png: the picture; replaced as a whole.
        title: of the picture.
        threshold: drawn as a line.

    Returns:
        Whether there was anything to draw; no file is written otherwise.
    """
    # A second of import time that only drawing should pay; a Figure without pyplot needs no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tables = {seed: read_metrics(path) for seed, path in sorted(runs.items())}
    if not any(np.isfinite(table["evaluator_return"]).any() for table in tables.values()):
        return False
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    for seed, table in tables.items():
        _draw_seed(axes, seed, table)
    for one, label in zip(axes, ("environment frames", "wall-clock time [min]"), strict=True):
        one.axhline(threshold, color="black", ls="--", lw=1, label=f"threshold {threshold:g}")
        one.set_xlabel(label)
        one.grid(alpha=0.3)
        one.margins(x=0.02)
    axes[0].set_ylabel("evaluator's mean return")
    axes[0].legend(loc="best", frameon=False)
    figure.suptitle(title)
    png.parent.mkdir(parents=True, exist_ok=True)
    temporary = png.with_name(f".{png.name}.new")
    try:
        # Without metadata, equal curves give equal files.
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
        temporary.replace(png)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _draw_seed(axes: Any, seed: int, table: Table) -> None:
    shown = np.isfinite(table["evaluator_return"])
    returns, low, high = (
        table[name][shown] for name in ("evaluator_return", "evaluator_return_min", "evaluator_return_max")
    )
    for one, x in zip(axes, (table["global_frames"][shown], table["wall_seconds"][shown] / 60.0), strict=True):
        (line,) = one.plot(x, returns, lw=1.5, label=f"seed {seed}")
        one.fill_between(x, low, high, color=line.get_color(), alpha=0.12, lw=0)

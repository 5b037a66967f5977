"""The learning curve of a run as a picture, from its ``metrics.csv``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from apexrl.telemetry.experiment_log import read_metrics


def draw_learning_curve(metrics_csv: str | os.PathLike[str], png: str | os.PathLike[str], title: str = "") -> bool:
    """Draw returns against frames and against wall-clock.

    The evaluator's mean return is a line with the range of its episodes around it; the greedy actors' mean return is a
    second, thinner line. The picture is written under a temporary name and renamed.

    Returns:
        Whether there was anything to draw; no file is written otherwise.
    """
    # Imported here: a second of import time that only a drawing process should pay. Figure without pyplot needs no
    # display and keeps no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    table = read_metrics(metrics_csv)
    if not (np.isfinite(table["evaluator_return"]).any() or np.isfinite(table["greedy_return"]).any()):
        return False
    hours = table["wall_seconds"] / 3600.0
    in_hours = bool(hours.max(initial=0.0) >= 2.0)
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    _draw(left, table["global_frames"], table)
    left.set_xlabel("environment frames")
    left.set_ylabel("return (unclipped)")
    _draw(right, hours if in_hours else hours * 60.0, table)
    right.set_xlabel(f"wall-clock time [{'h' if in_hours else 'min'}]")
    left.legend(loc="best", frameon=False)
    if title:
        figure.suptitle(title)
    png = Path(png)
    temporary = png.with_name(f".{png.name}.new")
    try:
        figure.savefig(temporary, format="png", dpi=120)
        os.replace(temporary, png)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _draw(axes: Any, x: np.ndarray[Any, Any], table: dict[str, np.ndarray[Any, Any]]) -> None:
    greedy = np.isfinite(table["greedy_return"])
    if greedy.any():
        axes.plot(x[greedy], table["greedy_return"][greedy], color="tab:gray", lw=1, label="actors, greedy lanes")
    evaluated = np.isfinite(table["evaluator_return"])
    if evaluated.any():
        low, high = table["evaluator_return_min"][evaluated], table["evaluator_return_max"][evaluated]
        axes.fill_between(x[evaluated], low, high, color="tab:blue", alpha=0.2, lw=0, label="evaluator, min to max")
        axes.plot(x[evaluated], table["evaluator_return"][evaluated], color="tab:blue", lw=2, label="evaluator, mean")
    axes.grid(alpha=0.3)
    axes.margins(x=0.02)

"""Statistics over seeds (Agarwal et al. 2021, arXiv 2108.13264): interquartile mean and bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt


def iqm(values: npt.ArrayLike) -> float:
    """Interquartile mean: the mean of what is left without the floor(n / 4) lowest and as many highest values.

    Raises:
        ValueError: there are no values, or one is not finite.
    """
    sorted_values = np.sort(_finite(values))
    cut = len(sorted_values) // 4
    return float(sorted_values[cut : len(sorted_values) - cut].mean())


def bootstrap_interval(
    runs: Mapping[str, npt.ArrayLike],
    statistic: Callable[[npt.NDArray[np.float64]], float] = iqm,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of ``statistic`` over all runs of all tasks, by the stratified bootstrap.

    Args:
        runs: task -> one value per run. Runs are resampled within their task, so that every task keeps its weight.
        statistic: of all values together.
        confidence: share of resamples inside the interval.
        resamples: how many.
        seed: of the resampling.

    Raises:
        ValueError: a task has no values, or one that is not finite; or there is no task.
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence is {confidence}, must be in (0, 1)")
    strata = [_finite(values) for values in runs.values()]
    if not strata:
        raise ValueError("there are no tasks")
    generator = np.random.default_rng(seed)
    found = [
        statistic(np.concatenate([generator.choice(values, len(values)) for values in strata]))
        for _ in range(resamples)
    ]
    tail = 100.0 * (1.0 - confidence) / 2.0
    low, high = np.percentile(found, [tail, 100.0 - tail])
    return float(low), float(high)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum and maximum of several windows of one measurement."""
    found = _finite(values)
    return {"median": float(np.median(found)), "min": float(found.min()), "max": float(found.max())}


def _finite(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    found = np.asarray(values, dtype=np.float64).ravel()
    if not len(found):
        raise ValueError("there are no values")
    if not np.isfinite(found).all():
        raise ValueError(f"values must be finite, got {found}")
    return found

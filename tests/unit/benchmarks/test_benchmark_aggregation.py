"""Statistics over seeds against figures worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.aggregation import bootstrap_interval, iqm, spread


def test_iqm_golden() -> None:
    assert iqm([1, 2, 3, 4, 5, 6, 7, 100]) == 4.5  # mean of 3, 4, 5, 6


@pytest.mark.parametrize(
    ("values", "expected"),
    [([5.0], 5.0), ([1.0, 2.0, 9.0], 4.0), ([0.0, 10.0, 20.0, 1000.0], 15.0), ([100, 1, 3, 2, 4], 3.0)],
)
def test_iqm_of_few_values_drops_a_quarter_at_each_end_rounded_down(values: list[float], expected: float) -> None:
    assert iqm(values) == expected


def test_iqm_does_not_depend_on_order() -> None:
    values = np.random.default_rng(0).normal(size=23)
    assert iqm(values) == iqm(values[::-1])


@pytest.mark.parametrize("values", [[], [1.0, np.nan], [np.inf]])
def test_iqm_refuses_values_that_say_nothing(values: list[float]) -> None:
    with pytest.raises(ValueError, match="values"):
        iqm(values)


def test_interval_of_equal_runs_is_a_point() -> None:
    assert bootstrap_interval({"a": [3.0, 3.0, 3.0]}) == (3.0, 3.0)


def test_interval_is_reproducible_and_holds_the_statistic() -> None:
    runs = {"a": [1.0, 2.0, 3.0, 4.0, 5.0], "b": [10.0, 11.0, 12.0]}
    low, high = bootstrap_interval(runs, seed=3)
    assert (low, high) == bootstrap_interval(runs, seed=3)
    assert low < iqm(np.concatenate([runs["a"], runs["b"]])) < high


def test_resampling_stays_within_tasks() -> None:
    """With one run per task every resample is the same; pooling the tasks would spread."""
    runs = {"easy": [100.0], "hard": [0.0]}
    assert bootstrap_interval(runs, statistic=lambda values: float(values.mean())) == (50.0, 50.0)


def test_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for repetition in range(60):
        sample = generator.normal(size=20)
        low, high = bootstrap_interval(
            {"task": sample}, lambda values: float(values.mean()), resamples=200, seed=repetition
        )
        covered += low <= 0.0 <= high
    assert 51 <= covered <= 59  # 56 expected: percentile intervals of 20 values are a little narrow


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_interval_refuses_a_confidence_outside_of_0_and_1(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_interval({"a": [1.0]}, confidence=confidence)


def test_spread_of_windows() -> None:
    assert spread([3.0, 1.0, 8.0]) == {"median": 3.0, "min": 1.0, "max": 8.0}

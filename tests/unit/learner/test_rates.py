"""How fast the run goes, as the learner counts it."""

from __future__ import annotations

from apex_learner.rates import Rates


def test_the_duration_of_each_update_is_told_once() -> None:
    rates = Rates()
    rates.updated(0.25)
    rates.updated(0.5)
    assert rates.take_durations() == [0.25, 0.5]
    rates.updated(1.0)
    assert rates.take_durations() == [1.0]
    assert rates.take_durations() == []
    assert rates.total_update_seconds == 1.75

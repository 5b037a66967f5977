"""Windows in turn, with a clock of the test's own."""

from __future__ import annotations

import pytest

from benchmarks.windows import interleave, ratios, repeat


def test_windows_take_turns_after_a_warm_up() -> None:
    calls: list[tuple[str, float]] = []

    def program(name: str, rate: float):  # type: ignore[no-untyped-def]
        def window(seconds: float) -> float:
            calls.append((name, seconds))
            return rate

        return window

    rates = interleave({"a": program("a", 2.0), "b": program("b", 4.0)}, seconds=5.0, windows=2)
    assert rates == {"a": [2.0, 2.0], "b": [4.0, 4.0]}
    assert calls == [("a", 1.0), ("b", 1.0), ("a", 5.0), ("b", 5.0), ("a", 5.0), ("b", 5.0)]


def test_a_rate_counts_units_over_the_time_that_they_really_took() -> None:
    now = 0.0
    finished_at: list[float] = []

    def work() -> int:
        nonlocal now
        now += 0.4
        return 8

    def finish() -> None:
        nonlocal now
        now += 0.1
        finished_at.append(now)

    window = repeat(work, finish=finish, clock=lambda: now)
    # Three calls of 0.4 s pass the second; waiting for the accelerator takes 0.1 s more.
    assert window(1.0) == pytest.approx(24 / 1.3)
    assert finished_at == [pytest.approx(0.1), pytest.approx(1.4)]


def test_ratios_pair_neighbouring_windows() -> None:
    assert ratios([1.0, 6.0], [2.0, 3.0]) == [0.5, 2.0]
    with pytest.raises(ValueError, match="zip"):
        ratios([1.0], [1.0, 2.0])


@pytest.mark.parametrize(("seconds", "windows"), [(0.0, 1), (1.0, 0)])
def test_no_windows_are_refused(seconds: float, windows: int) -> None:
    with pytest.raises(ValueError, match="windows is"):
        interleave({}, seconds=seconds, windows=windows)

"""Timed windows of several programs in turn, so that a machine that slows down slows all of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping

Window = Callable[[float], float]
"""Runs for about so many seconds and returns units per second."""


def interleave(programs: Mapping[str, Window], *, seconds: float, windows: int) -> dict[str, list[float]]:
    """Rates of ``windows`` windows per program: A B A B ..., after one shorter window each to warm up.

    Raises:
        ValueError: fewer than one window, or no time.
    """
    if windows < 1 or seconds <= 0:
        raise ValueError(f"windows is {windows} and seconds is {seconds}, must be at least 1 and above 0")
    for window in programs.values():
        window(min(seconds, 1.0))
    rates: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(windows):
        for name, window in programs.items():
            rates[name].append(window(seconds))
        shown = ", ".join(f"{name} {values[-1]:,.1f}" for name, values in rates.items())
        print(f"window {number + 1} of {windows}: {shown} (1/s)", file=sys.stderr, flush=True)
    return rates


def repeat(
    call: Callable[[], int],
    *,
    finish: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Window:
    """A window that calls ``call`` again and again; each call returns the units it did.

    Args:
        call: the work.
        finish: called at the end of a window, within its time (waits for an accelerator).
        clock: seconds.
    """

    def window(seconds: float) -> float:
        finish()
        started = clock()
        units = 0
        while clock() - started < seconds:
            units += call()
        finish()
        return units / (clock() - started)

    return window


def ratios(numerators: list[float], denominators: list[float]) -> list[float]:
    """Ratio of each pair of neighbouring windows: steadier than a ratio of medians on a machine that drifts."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]

"""The fit of a process's memory."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys

import pytest

from benchmarks.soak import held_bytes, slope, summary


def _samples(per_minute: float, minutes: float = 20.0) -> list[tuple[float, float]]:
    return [(second, 300.0 + per_minute * second / 60.0) for second in range(0, int(minutes * 60), 5)]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("flags", [mmap.MAP_SHARED, mmap.MAP_PRIVATE])
def test_mappings_of_no_file_are_held(flags: int) -> None:
    before = held_bytes(os.getpid())
    assert before is not None
    with mmap.mmap(-1, 32 << 20, flags=flags) as memory:
        memory.write(bytes([1]) * len(memory))
        held = held_bytes(os.getpid())
        assert held is not None
        # What was freed for the bytes written may come or go.
        assert held - before > 24 << 20


def test_a_process_that_has_ended_holds_nothing() -> None:
    ended = subprocess.Popen([sys.executable, "-c", "pass"])
    ended.wait()
    assert held_bytes(ended.pid) is None


def test_slope_is_megabytes_per_minute() -> None:
    assert slope(_samples(0.5)) == pytest.approx(0.5, rel=1e-6)
    assert slope(_samples(0.0)) == pytest.approx(0.0, abs=1e-9)


def test_moments_of_use_are_no_growth() -> None:
    spiky = [(s, mb + (400.0 if i % 12 == 7 else 0.0)) for i, (s, mb) in enumerate(_samples(0.0))]
    assert slope(spiky) == pytest.approx(0.0, abs=1e-9)


def test_what_settles_is_left_out() -> None:
    settling = [(s, mb + max(0.0, 300.0 - s)) for s, mb in _samples(0.1)]
    found = summary({"replay": settling}, settle_seconds=300.0)["replay"]
    assert found["slope_mb_per_minute"] == pytest.approx(0.1, rel=1e-3)
    assert found["max_mb"] == pytest.approx(302.0, abs=0.1)

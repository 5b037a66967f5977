"""The learner's loop beside a plain one: real processes, windows of a moment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.learner_loop import main
from benchmarks.machine import ROOT
from benchmarks.paired_learner import Pair, Schedule, read_pairs


def test_a_learner_measures_itself_beside_a_plain_loop(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    windows = ["--windows", "2", "--seconds", "0.3", "--items", "600", "--warm-updates", "20"]
    assert main([str(ROOT / "configs" / "catch_apex_dqn.yaml"), *windows, "--write", str(tmp_path)]) == 0
    assert '"fraction"' in capfd.readouterr().out
    record = json.loads((tmp_path / "learner_loop_catch_apex_dqn.json").read_text())
    metrics = record["metrics"]
    assert len(metrics["fractions"]) == 2
    assert all(fraction > 0 for fraction in metrics["fractions"])
    assert metrics["learner_updates_per_second"]["min"] > 0
    assert record["met"] is None


def test_a_line_that_is_still_being_written_does_not_count(tmp_path: Path) -> None:
    results = tmp_path / "pairs.jsonl"
    assert read_pairs(results) == []
    results.write_text('{"learner": 9.0, "plain": 10.0, "batch_wait_ratio": 0.0}\n{"learner": 8.0, "pl')
    assert read_pairs(results) == [Pair(learner=9.0, plain=10.0, batch_wait_ratio=0.0)]


@pytest.mark.parametrize(("windows", "seconds"), [(0, 1.0), (1, 0.0)])
def test_a_schedule_without_windows_is_refused(windows: int, seconds: float) -> None:
    with pytest.raises(ValueError, match="must be at least 1 and above 0"):
        Schedule(100, windows, seconds)

"""Learning gates: real services on this machine must learn a small problem from nothing. Run by ``make learning``.

What has to be reached is said in ``benchmarks/subjects.py``; the larger subjects are run by ``benchmarks/learning.py``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.learning_run import run_seed
from benchmarks.learning_summary import summarize
from benchmarks.record import goals_met
from benchmarks.subjects import SUBJECTS

GATES = ("catch",)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("key", GATES)
def test_the_services_learn(key: str, tmp_path: Path) -> None:
    subject = SUBJECTS[key]
    outcomes = [run_seed(subject, seed, tmp_path / f"seed-{seed}") for seed in subject.seeds]
    assert all(outcome.finished for outcome in outcomes)
    metrics = summarize(subject, outcomes)
    assert goals_met(metrics, subject.goals), metrics

"""The record of a run survives crashes and full disks, and a picture can be drawn from it."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from apexrl.telemetry.experiment_log import COLUMNS, ExperimentLog, Progress, read_metrics
from apexrl.telemetry.learning_curve import draw_learning_curve
from apexrl.types import ParameterVersion


def events(directory: Path) -> list[tuple[int, str, float]]:
    found = []
    for path in sorted(directory.glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                number = value.tensor.float_val[0] if value.HasField("tensor") else value.simple_value
                found.append((event.step, value.tag, round(number, 4)))
    return found


def test_values_land_in_both_records(tmp_path: Path) -> None:
    with ExperimentLog(tmp_path) as log:
        log.scalars(Progress(1.5, 4_000_000_001, 10, 1), {"loss": 0.25, "replay_items": 123_456_789, "my_own": 2.0})
        log.evaluation(Progress(3.0, 5_000_000_000, 20, 1), [1.0, 3.0], ParameterVersion(1, 15), 0.001)
    table = read_metrics(tmp_path / "metrics.csv")
    assert table["global_frames"].tolist() == [4_000_000_001, 5_000_000_000]
    assert table["replay_items"][0] == 123_456_789
    assert table["loss"][0] == 0.25
    assert np.isnan(table["loss"][1])
    assert [table[f"evaluator_{c}"][1] for c in ("return", "return_std", "return_min", "return_max")] == [2, 1, 1, 3]
    assert (table["evaluator_episodes"][1], table["evaluator_updates"][1]) == (2, 15)
    recorded = events(tmp_path / "tensorboard")
    assert (4_000_000_001, "learner/loss", 0.25) in recorded
    assert (4_000_000_001, "learner/my_own", 2.0) in recorded
    assert (5_000_000_000, "evaluator/return", 2.0) in recorded


def test_every_line_is_on_disk_at_once(tmp_path: Path) -> None:
    log = ExperimentLog(tmp_path)
    log.scalars(Progress(0, 1, 1, 1), {"loss": 1.0})
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 2
    assert len(events(tmp_path / "tensorboard")) == 1
    log.close()


def test_resuming_appends_and_drops_a_torn_line(tmp_path: Path) -> None:
    with ExperimentLog(tmp_path) as log:
        log.scalars(Progress(0, 1, 1, 1), {"loss": 1.0})
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write("2.0,17")
    with ExperimentLog(tmp_path) as log:
        log.scalars(Progress(1, 2, 2, 2), {"loss": 2.0})
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0] == ",".join(COLUMNS)
    assert len(lines) == 3
    assert read_metrics(tmp_path / "metrics.csv")["loss"].tolist() == [1.0, 2.0]


def test_a_file_with_older_columns_is_brought_up_to_date(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("learner_updates,epoch,loss,gone\n5,1,0.5,9\n")
    with ExperimentLog(tmp_path) as log:
        log.scalars(Progress(1, 2, 6, 1), {"loss": 2.0})
    table = read_metrics(tmp_path / "metrics.csv")
    assert table["loss"].tolist() == [0.5, 2.0]
    assert table["learner_updates"].tolist() == [5, 6]


def test_what_a_resume_made_obsolete_is_left_out(tmp_path: Path) -> None:
    with ExperimentLog(tmp_path) as log:
        for updates, epoch in [(100, 1), (200, 1), (300, 1), (250, 2), (350, 2), (220, 3), (400, 3)]:
            log.scalars(Progress(0, updates, updates, epoch), {"loss": epoch})
    table = read_metrics(tmp_path / "metrics.csv")
    assert table["learner_updates"].tolist() == [100, 200, 220, 400]
    assert table["epoch"].tolist() == [1, 1, 3, 3]


def test_a_full_disk_stops_the_log_and_not_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = ExperimentLog(tmp_path)
    log.scalars(Progress(0, 1, 1, 1), {"loss": 1.0})
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: write(fd, data[:7]) if fd == log._fd else write(fd, data))
        log.scalars(Progress(1, 2, 2, 1), {"loss": 2.0})

    def full(self: io.FileIO, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(log._events), "_write", full)
        log.scalars(Progress(2, 3, 3, 1), {"loss": 3.0})
    log.scalars(Progress(3, 4, 4, 1), {"loss": 4.0})
    log.close()
    assert read_metrics(tmp_path / "metrics.csv")["loss"].tolist() == [1.0, 3.0, 4.0]
    assert [value for _, _, value in events(tmp_path / "tensorboard")] == [1.0, 4.0]


def test_the_learning_curve_is_drawn_from_the_csv(tmp_path: Path) -> None:
    png = tmp_path / "learning_curve.png"
    with ExperimentLog(tmp_path) as log:
        log.scalars(Progress(0, 0, 0, 1), {"loss": 1.0})
        assert not draw_learning_curve(log.path, png)
        assert not png.exists()
        for i in range(1, 5):
            log.scalars(Progress(60 * i, 1000 * i, i, 1), {"greedy_return": i - 0.5})
            log.evaluation(Progress(60 * i, 1000 * i, i, 1), [i - 1, i, i + 1], ParameterVersion(1, i), 0.001)
        assert draw_learning_curve(log.path, png, title="catch")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert png.stat().st_size > 10_000
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_the_log_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from apexrl.telemetry.experiment_log import ExperimentLog, Progress;"
        f"log = ExperimentLog({str(tmp_path)!r}); log.scalars(Progress(0, 0, 0, 1), {{'loss': 1.0}});"
        "print({'torch', 'tensorflow', 'matplotlib'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"

"""Reading thresholds from a run's metrics.csv, and drawing several runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from apexrl.telemetry.experiment_log import COLUMNS, CSV_NAME, read_metrics
from benchmarks.curves import draw_curves, first_reaching, last_progress

Row = dict[str, float]


def write_log(directory: Path, rows: Sequence[Row]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / CSV_NAME
    lines = [",".join(COLUMNS)]
    lines += [",".join(str(row.get(column, "")) for column in COLUMNS) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def row(seconds: float, frames: int, updates: int, **values: float) -> Row:
    return {"wall_seconds": seconds, "global_frames": frames, "learner_updates": updates, "epoch": 1, **values}


ROWS = [
    row(10, 1000, 50, samples_per_insert=7.5),
    row(15, 1600, 80, evaluator_return=10.0, evaluator_return_min=5, evaluator_return_max=15, evaluator_updates=60),
    row(20, 2000, 100, samples_per_insert=7.9),
    row(25, 2500, 140, evaluator_return=20.0, evaluator_return_min=15, evaluator_return_max=25, evaluator_updates=120),
    row(35, 3600, 190, evaluator_return=18.0, evaluator_return_min=15, evaluator_return_max=21, evaluator_updates=180),
]


def test_the_first_evaluation_at_the_threshold_counts(tmp_path: Path) -> None:
    table = read_metrics(write_log(tmp_path, ROWS))
    reached = first_reaching(table, 18.0)
    assert reached is not None
    # Frames and seconds of the report, updates of the parameters that were evaluated.
    assert reached == (25.0, 2500, 120, 20.0)
    first = first_reaching(table, 10.0)
    assert first is not None
    assert first.frames == 1600


def test_a_threshold_never_reached(tmp_path: Path) -> None:
    assert first_reaching(read_metrics(write_log(tmp_path, ROWS)), 20.5) is None


def test_exploring_returns_do_not_count(tmp_path: Path) -> None:
    table = read_metrics(write_log(tmp_path, [row(1, 10, 1, greedy_return=100.0, exploring_return=100.0)]))
    assert first_reaching(table, 50.0) is None


def test_updates_of_a_log_without_the_evaluated_version(tmp_path: Path) -> None:
    reached = first_reaching(read_metrics(write_log(tmp_path, [row(1, 10, 7, evaluator_return=5.0)])), 5.0)
    assert reached is not None
    assert reached.updates == 7


def test_last_progress(tmp_path: Path) -> None:
    progress = last_progress(read_metrics(write_log(tmp_path, ROWS)))
    assert progress == (35.0, 3600, 190, 7.9, 3, 20.0)


def test_progress_of_an_empty_log(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reported nothing"):
        last_progress(read_metrics(write_log(tmp_path, [])))


def test_a_picture_of_all_seeds(tmp_path: Path) -> None:
    runs = {seed: write_log(tmp_path / str(seed), ROWS) for seed in (1, 2)}
    png = tmp_path / "images" / "subject.png"
    assert draw_curves(runs, png, title="Subject", threshold=18.0)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in png.parent.iterdir()] == ["subject.png"]


def test_nothing_to_draw(tmp_path: Path) -> None:
    runs = {1: write_log(tmp_path / "1", ROWS[:1])}
    assert not draw_curves(runs, tmp_path / "images" / "subject.png", title="Subject", threshold=18.0)
    assert not (tmp_path / "images").exists()

"""A run is resumed where it lies, and never mixed with another."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from apexrl.config import ConfigError, EnvConfig, ExperimentConfig, dump_yaml, load_experiment
from apexrl.runtime.directory_lock import DirectoryLock
from apexrl.runtime.run_directory import RunDirectory


@dataclass(frozen=True)
class Section:
    name: str = "some"
    learning_rate: float = 1e-4


CONFIG = ExperimentConfig(algorithm=Section())


def test_a_new_run_gets_an_identity_and_its_configuration(tmp_path: Path) -> None:
    run = RunDirectory.create_or_resume(tmp_path / "runs" / "a", CONFIG)
    assert not run.resumed
    assert len(bytes.fromhex(run.run_id)) == 16
    assert load_experiment(run.config_yaml, algorithm_configs={"some": Section}) == CONFIG
    assert run.logs.is_dir()
    other = RunDirectory.create_or_resume(tmp_path / "runs" / "b", CONFIG)
    assert other.run_id != run.run_id


def test_a_run_is_resumed_with_other_local_fields(tmp_path: Path) -> None:
    first = RunDirectory.create_or_resume(tmp_path, CONFIG)
    changed = dataclasses.replace(CONFIG, algorithm=Section(learning_rate=1.0), seed=5)
    again = RunDirectory.create_or_resume(tmp_path, changed)
    assert again.resumed
    assert again.run_id == first.run_id
    assert again.config_yaml.read_text() == dump_yaml(changed)
    assert RunDirectory.open(tmp_path).run_id == first.run_id


def test_a_run_of_another_meaning_is_refused_by_field(tmp_path: Path) -> None:
    RunDirectory.create_or_resume(tmp_path, CONFIG)
    before = (tmp_path / "config.yaml").read_text()
    changed = dataclasses.replace(CONFIG, env=EnvConfig(stack=1), algorithm=Section(name="other"))
    with pytest.raises(ConfigError) as caught:
        RunDirectory.create_or_resume(tmp_path, changed)
    assert 'algorithm.name: "other" here, "some" there; env.stack: 1 here, 4 there' in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert (tmp_path / "config.yaml").read_text() == before


def test_a_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match=r"holds files but no run\.json"):
        RunDirectory.create_or_resume(tmp_path, CONFIG)
    with pytest.raises(ConfigError, match=r"holds files but no run\.json"):
        RunDirectory.create_or_resume(tmp_path, CONFIG, fresh=True)
    with pytest.raises(ConfigError, match="there is a file of this name"):
        RunDirectory.create_or_resume(tmp_path / "thesis.tex", CONFIG)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_an_empty_volume_is_fine(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    assert not RunDirectory.create_or_resume(tmp_path, CONFIG).resumed


def test_a_fresh_run_keeps_the_earlier_one_and_its_epoch(tmp_path: Path) -> None:
    first = RunDirectory.create_or_resume(tmp_path, CONFIG)
    first.epoch_file.take_next(b"one")
    first.checkpoints.mkdir()
    (first.checkpoints / "x").write_text("")
    first.metrics_csv.write_text("loss\n")
    changed = dataclasses.replace(CONFIG, env=EnvConfig(stack=1))
    second = RunDirectory.create_or_resume(tmp_path, changed, fresh=True)
    assert not second.resumed
    assert second.run_id != first.run_id
    assert not second.checkpoints.exists()
    assert second.epoch_file.take_next(b"two") == 2
    kept = tmp_path / "previous" / first.run_id
    assert sorted(os.listdir(kept)) == ["checkpoints", "config.yaml", "logs", "metrics.csv", "run.json"]
    third = RunDirectory.create_or_resume(tmp_path, CONFIG, fresh=True)
    assert sorted(os.listdir(tmp_path / "previous")) == sorted([first.run_id, second.run_id])
    assert third.epoch_file.read()[0] == 2


def test_a_run_in_use_is_not_moved(tmp_path: Path) -> None:
    run = RunDirectory.create_or_resume(tmp_path, CONFIG)
    with (
        DirectoryLock(run.checkpoints),
        pytest.raises(ConfigError, match=r"cannot be begun anew: .*another learner is writing"),
    ):
        RunDirectory.create_or_resume(tmp_path, CONFIG, fresh=True)
    assert RunDirectory.open(tmp_path).run_id == run.run_id


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2, "run_id": "x", "shared": {}}'])
def test_a_damaged_run_file_is_named(tmp_path: Path, text: str) -> None:
    RunDirectory.create_or_resume(tmp_path, CONFIG)
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ConfigError, match=r"run\.json: "):
        RunDirectory.create_or_resume(tmp_path, CONFIG)


def test_opening_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no run"):
        RunDirectory.open(tmp_path)

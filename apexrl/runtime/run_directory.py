"""The directory of one run: where things lie in it, and whether a run may be begun or resumed there."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

from apexrl.config import ConfigError, difference, dump_yaml, shared_fields, shared_json
from apexrl.runtime.atomic_files import replace_file
from apexrl.runtime.directory_lock import DirectoryLock
from apexrl.runtime.epoch import EpochFile
from apexrl.runtime.errors import CheckpointError
from apexrl.telemetry.logging import get_logger

RUN_FORMAT = 1


class RunDirectory:
    """Layout of a run's directory.

    ``run.json`` says which run this is and what its data means (the shared configuration); ``config.yaml`` is the
    whole resolved configuration of the last start; ``epoch.json`` the learner's epoch, which outlives the run.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config_yaml = self.path / "config.yaml"
        self.run_json = self.path / "run.json"
        self.epoch_json = self.path / "epoch.json"
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"
        self.metrics_csv = self.path / "metrics.csv"
        self.learning_curve_png = self.path / "learning_curve.png"
        self.logs = self.path / "logs"
        self.previous = self.path / "previous"
        self.run_id = ""
        self.resumed = False

    @property
    def epoch_file(self) -> EpochFile:
        """The learner's epoch."""
        return EpochFile(self.epoch_json)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunDirectory:
        """An existing run, to read from.

        Raises:
            ConfigError: there is no run at ``path``.
        """
        directory = cls(path)
        directory.run_id = directory._read_run()["run_id"]
        directory.resumed = True
        return directory

    @classmethod
    def create_or_resume(cls, path: str | os.PathLike[str], config: Any, *, fresh: bool = False) -> RunDirectory:
        """The run at ``path``: a new one if the directory is empty or absent, else the one that is there.

        Args:
            path: The run's directory.
            config: The resolved :class:`~apexrl.config.ExperimentConfig`. It is written to ``config.yaml``. Fields that
                are not shared may differ from the former start.
            fresh: Begin a new run; what an earlier one left is moved to ``previous/<its run id>``.

        Raises:
            ConfigError: the directory holds something that is no run, or a run whose shared fields differ.
        """
        directory = cls(path)
        if directory.path.exists() and not directory.path.is_dir():
            raise ConfigError(f"run directory {directory.path}: there is a file of this name")
        directory.path.mkdir(parents=True, exist_ok=True)
        found = {entry.name for entry in directory.path.iterdir()} - {"lost+found"}
        if fresh and directory.run_json.exists():
            directory._move_aside(found)
            found = set()
        if not directory.run_json.exists() and found - {directory.epoch_json.name, directory.previous.name}:
            raise ConfigError(
                f"run directory {directory.path}: holds files but no {directory.run_json.name}, so it is not a run "
                "of this program; choose an empty or a new directory"
            )
        if directory.run_json.exists():
            directory._resume(config)
        else:
            directory._create(config)
        replace_file(directory.config_yaml, dump_yaml(config).encode())
        directory.logs.mkdir(exist_ok=True)
        return directory

    def _create(self, config: Any) -> None:
        self.run_id = secrets.token_hex(16)
        content = {"format": RUN_FORMAT, "run_id": self.run_id, "shared": shared_fields(config)}
        replace_file(self.run_json, json.dumps(content, indent=2, sort_keys=True).encode())

    def _resume(self, config: Any) -> None:
        content = self._read_run()
        differences = difference(shared_json(config), json.dumps(content["shared"]))
        if differences:
            raise ConfigError(
                f"run directory {self.path} belongs to a run of another configuration ("
                + "; ".join(differences)
                + "): choose another directory, or begin anew with --fresh"
            )
        self.run_id = content["run_id"]
        self.resumed = True

    def _read_run(self) -> dict[str, Any]:
        try:
            content = json.loads(self.run_json.read_text(encoding="utf-8"))
            number, run_id, shared = content["format"], content["run_id"], content["shared"]
        except FileNotFoundError:
            raise ConfigError(f"run directory {self.path}: there is no run (no {self.run_json.name})") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self.run_json}: not readable ({error!r})") from error
        if number != RUN_FORMAT:
            raise ConfigError(f"{self.run_json}: format is {number!r}, must be {RUN_FORMAT}")
        return {"run_id": str(run_id), "shared": shared}

    def _move_aside(self, found: set[str]) -> None:
        """Keep an earlier run. The epoch stays: epochs only grow, whatever the run."""
        target = self.previous / self._read_run()["run_id"]
        try:
            with DirectoryLock(self.checkpoints):
                target.mkdir(parents=True, exist_ok=True)
                # run.json last: a move that is interrupted is then finished by the next start.
                names = found - {self.epoch_json.name, self.previous.name}
                for name in sorted(names, key=lambda n: n == self.run_json.name):
                    os.rename(self.path / name, target / name)
        except CheckpointError as error:
            raise ConfigError(f"run directory {self.path} cannot be begun anew: {error}") from error
        get_logger(__name__).info("earlier run moved aside", path=str(target))

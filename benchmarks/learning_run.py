"""One seed of a learning proof: real services as child processes, then greedy play on the final parameters."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from apex_actor.evaluation import evaluate
from apex_cli.play import load_player
from apex_cli.processes import Service
from apexrl.algorithms import CONFIGS
from apexrl.config import ExperimentConfig, load_experiment, to_plain
from apexrl.envs import make_vec
from apexrl.runtime.atomic_files import replace_file
from apexrl.runtime.run_directory import RunDirectory
from apexrl.telemetry.experiment_log import read_metrics
from benchmarks.curves import Table, first_reaching, last_progress
from benchmarks.machine import ROOT, commit, source_digest
from benchmarks.subjects import Subject

POLL_SECONDS = 2.0
REPORT_SECONDS = 60.0
#: The launcher stops its services within ten seconds; evaluation of the last parameters comes before.
STOP_SECONDS = 60.0
EVALUATION_LANES = 10


class RunFailedError(RuntimeError):
    """A training run ended before its end; the message holds the end of its output."""


@dataclass(frozen=True)
class Outcome:
    """What one seed brought. Kept as JSON beside the run, so that seeds can be run on different days."""

    seed: int
    commit: dict[str, Any]
    source_digest: str
    config_digest: str
    finished: bool
    """The run reached its budget of frames; False: it was stopped at the wall-clock limit."""
    wall_seconds: float
    """From the launch of the processes to their end."""
    frames: int
    env_steps: int
    updates: int
    frames_per_second: float
    """Over the whole run, by the learner's clock."""
    updates_per_second: float
    samples_per_insert: float | None
    threshold_seconds: float | None
    """From the launch to the report of the first evaluation at or above the threshold."""
    threshold_frames: int | None
    threshold_updates: int | None
    evaluation_epsilon: float
    evaluation_returns: tuple[float, ...]
    """Final parameters, greedy, unclipped, whole games."""

    @property
    def mean_return(self) -> float:
        return float(np.mean(self.evaluation_returns))


def load_config(subject: Subject) -> ExperimentConfig[Any]:
    return load_experiment(ROOT / subject.config, subject.overrides, algorithm_configs=CONFIGS)


def config_digest(subject: Subject) -> str:
    """SHA-256 of the subject's whole resolved configuration without the seed."""
    plain = to_plain(load_config(subject))
    plain.pop("seed")
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def seed_directory(work: Path, subject: Subject, seed: int) -> Path:
    return work / subject.name / f"seed-{seed}"


def load_outcome(directory: Path) -> Outcome | None:
    """The finished seed in ``directory``; None if there is none, or one of another format."""
    try:
        plain = json.loads((directory / "outcome.json").read_text(encoding="utf-8"))
        return Outcome(**{**plain, "evaluation_returns": tuple(plain["evaluation_returns"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def run_seed(subject: Subject, seed: int, directory: Path, *, limit_seconds: float | None = None) -> Outcome:
    """Train one seed from nothing, evaluate the final parameters, and keep the outcome in ``directory``.

    Args:
        subject: what to learn.
        seed: of the run.
        directory: gets ``run/``, ``train.log`` and ``outcome.json``.
        limit_seconds: instead of the subject's.

    Raises:
        RunFailedError: the launcher ended before the run did.
    """
    directory.mkdir(parents=True, exist_ok=True)
    outcome_json, run = directory / "outcome.json", directory / "run"
    outcome_json.unlink(missing_ok=True)
    state: dict[str, Any] = {
        "commit": commit(),
        "source_digest": source_digest(),
        "config_digest": config_digest(subject),
    }
    arguments = ["train", str(ROOT / subject.config), "--seed", str(seed), "--run-dir", str(run), "--fresh"]
    arguments += subject.overrides
    training = _Training(subject, arguments, directory)
    training.run(limit_seconds or subject.limit_seconds)
    table = _read_log(run)
    if table is None:
        raise training.failure("the run has reported nothing")
    progress, reached = last_progress(table), first_reaching(table, subject.threshold)
    played = play(run, subject.evaluation_episodes)
    if played.frames < load_config(subject).learner.max_frames and not training.stopped:
        raise training.failure(f"the run ended after {played.frames:,} frames")
    outcome = Outcome(
        seed=seed,
        **state,
        finished=not training.stopped,
        wall_seconds=round(training.wall_seconds, 1),
        frames=played.frames,
        env_steps=played.frames // played.action_repeat,
        updates=played.updates,
        frames_per_second=round(progress.frames / max(progress.seconds, 1e-9), 1),
        updates_per_second=round(progress.updates / max(progress.seconds, 1e-9), 2),
        samples_per_insert=progress.samples_per_insert,
        threshold_seconds=round(training.threshold_seconds or training.wall_seconds, 1) if reached else None,
        threshold_frames=reached.frames if reached else None,
        threshold_updates=reached.updates if reached else None,
        evaluation_epsilon=played.epsilon,
        evaluation_returns=played.returns,
    )
    replace_file(outcome_json, json.dumps(asdict(outcome), indent=2, allow_nan=False).encode())
    return outcome


class Played(NamedTuple):
    """Greedy play on a run's newest checkpoint."""

    frames: int
    """Environment frames behind the checkpoint."""
    updates: int
    action_repeat: int
    epsilon: float
    returns: tuple[float, ...]


def play(run: Path, episodes: int) -> Played:
    """Play the newest checkpoint as ``apex evaluate`` does.

    Raises:
        CheckpointError: there is none.
    """
    player = load_player(run, "newest")
    epsilon = player.config.evaluator.epsilon
    env = make_vec(player.config.env, min(EVALUATION_LANES, episodes), evaluation=True)
    try:
        reports = evaluate(
            config=player.config,
            env=env,
            algorithm=player.algorithm,
            networks=player.networks,
            version=player.version,
            episodes=episodes,
            epsilon=epsilon,
            seed=0,
        )
    finally:
        env.close()
    returns = tuple(report.episode_return for report in reports)
    return Played(player.frames, player.version.step, player.config.env.action_repeat, epsilon, returns)


def _read_log(run: Path) -> Table | None:
    """The run's ``metrics.csv``; None if nothing was reported."""
    path = RunDirectory(run).metrics_csv
    table = read_metrics(path) if path.exists() else None
    return table if table is not None and len(table["global_frames"]) else None


class _Training:
    """``apex train`` as a child process, watched for the moment at which the evaluator reaches the threshold."""

    def __init__(self, subject: Subject, arguments: Sequence[str], directory: Path) -> None:
        self._subject = subject
        log = directory / "train.log"
        log.unlink(missing_ok=True)
        self._launcher = Service("apex train", "apex_cli", arguments, log)
        self._metrics = RunDirectory(directory / "run").metrics_csv
        self._read = 0
        self.stopped = False
        """The wall-clock limit was reached."""
        self.wall_seconds = 0.0
        self.threshold_seconds: float | None = None

    def run(self, limit_seconds: float) -> None:
        """Train until the run's own end, or for ``limit_seconds``."""
        started = time.monotonic()
        self._launcher.start()
        try:
            self._watch(started, limit_seconds)
        finally:
            self.stopped = self._launcher.running
            self._launcher.terminate()
            self._launcher.wait(time.monotonic() + STOP_SECONDS)
            self.wall_seconds = time.monotonic() - started

    def failure(self, what: str) -> RunFailedError:
        """An error that says ``what`` and how the launcher ended."""
        code = self._launcher.process.returncode if self._launcher.process is not None else None
        return RunFailedError(
            f"{what}; apex train ended with code {code}, its output with:\n{self._launcher.log_tail()}"
        )

    def _watch(self, started: float, limit_seconds: float) -> None:
        reported = started
        while self._launcher.running and (now := time.monotonic()) - started < limit_seconds:
            if self.threshold_seconds is None and self._reached():
                self.threshold_seconds = now - started
            if now - reported >= REPORT_SECONDS:
                reported = now
                print(f"  {self._launcher.log_tail(1)}", file=sys.stderr, flush=True)
            time.sleep(POLL_SECONDS)

    def _reached(self) -> bool:
        """Whether the log of the run has an evaluation at the threshold; reads it only if it has grown."""
        try:
            size = self._metrics.stat().st_size
        except OSError:
            return False
        if size == self._read:
            return False
        self._read = size
        return first_reaching(read_metrics(self._metrics), self._subject.threshold) is not None

"""``apex evaluate`` and ``apex record``: greedy play from a run's checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import imageio.v2 as imageio
import numpy as np
import tyro
from torch import nn

from apex_actor.evaluation import evaluate
from apex_learner.trainer import Counters
from apexrl.algorithms import CONFIGS, make_algorithm
from apexrl.algorithms.base import Algorithm
from apexrl.config import ConfigError, ExperimentConfig, load_experiment
from apexrl.env_types import ActionSpec, ContinuousActions
from apexrl.envs import env_spec, make_vec
from apexrl.runtime.checkpoint import CheckpointStore
from apexrl.runtime.errors import CheckpointError
from apexrl.runtime.learner_snapshot import load_module
from apexrl.runtime.lifecycle import Shutdown
from apexrl.runtime.run_directory import RunDirectory
from apexrl.types import Array, ParameterVersion

Which = Literal["newest", "best"]


@dataclass(frozen=True)
class EvaluateArguments:
    """Play greedy episodes from a checkpoint and print the return with its spread.

    No-op starts (Atari), no reward clipping, whole games: losing a life ends nothing.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """Directory of the run."""
    episodes: int = 20
    """Episodes to play."""
    lanes: int = 10
    """Environments played side by side."""
    epsilon: float | None = None
    """Exploration: share of random actions, or standard deviation of the noise on continuous ones; the configuration's
    evaluator.epsilon by default."""
    checkpoint: Which = "newest"
    """newest, or best by the evaluator during training."""
    seed: int = 0
    """Seed of environments and random actions."""


@dataclass(frozen=True)
class RecordArguments:
    """Write a video of one greedy episode from a checkpoint."""

    run: Annotated[Path, tyro.conf.Positional]
    """Directory of the run."""
    output: Path | None = None
    """.mp4 or .gif; RUN/episode.mp4 by default."""
    checkpoint: Which = "newest"
    """newest, or best by the evaluator during training."""
    seed: int = 0
    """Seed of the environment."""
    fps: int = 30
    """Frames per second of the video, one frame per agent step."""
    max_steps: int = 10_000
    """Stop after this many agent steps."""


@dataclass(frozen=True)
class Player:
    """A policy from a checkpoint."""

    config: ExperimentConfig[Any]
    algorithm: Algorithm
    networks: nn.Module
    version: ParameterVersion
    frames: int
    actions: ActionSpec


def load_player(directory: Path, which: Which) -> Player:
    """The policy of a run's newest or best checkpoint.

    Raises:
        ConfigError: there is no run.
        CheckpointError: there is no checkpoint, or it is damaged or of another architecture.
    """
    run = RunDirectory.open(directory)
    config = load_experiment(run.config_yaml, algorithm_configs=CONFIGS)
    store = CheckpointStore(run.checkpoints, read_only=True)
    if which == "best":
        best = store.best()
        checkpoint = store.load(best[0]) if best is not None else None
    else:
        checkpoint = store.load_newest()
    if checkpoint is None:
        raise CheckpointError(f"run {directory} has no {which} checkpoint yet; the learner saves one every minute")
    spec = env_spec(config.env)
    algorithm = make_algorithm(config, spec)
    networks = algorithm.make_networks()
    load_module(networks, checkpoint.snapshot, "online")
    frames = Counters(**checkpoint.counters).global_frames
    return Player(config, algorithm, networks, checkpoint.version, frames, spec.actions)


def evaluate_run(arguments: EvaluateArguments, shutdown: Shutdown) -> int:
    """``apex evaluate``."""
    if arguments.episodes < 1 or arguments.lanes < 1:
        raise ConfigError(
            f"--episodes is {arguments.episodes} and --lanes is {arguments.lanes}, both must be at least 1"
        )
    player = load_player(arguments.run, arguments.checkpoint)
    epsilon = player.config.evaluator.epsilon if arguments.epsilon is None else arguments.epsilon
    if not 0.0 <= epsilon <= 1.0:
        raise ConfigError(f"--epsilon is {epsilon}, must be in [0, 1]")
    env = make_vec(player.config.env, min(arguments.lanes, arguments.episodes), evaluation=True)
    try:
        reports = evaluate(
            config=player.config,
            env=env,
            algorithm=player.algorithm,
            networks=player.networks,
            version=player.version,
            episodes=arguments.episodes,
            epsilon=epsilon,
            seed=arguments.seed,
            stop=lambda: shutdown.requested,
        )
    finally:
        env.close()
    if not reports:
        print("stopped before the last episode ended")
        return 1
    returns = np.array([report.episode_return for report in reports])
    lengths = np.array([report.length_steps for report in reports])
    print(f"environment {player.config.env.id}, parameters {player.version} after {player.frames:,} frames")
    starts = f"no-op starts up to {player.config.env.noop_max}, " if player.config.env.id.startswith("atari/") else ""
    print(f"protocol    {starts}unclipped rewards, {exploration(player, epsilon)}")
    print(
        f"return      {returns.mean():.2f} ± {returns.std():.2f} (mean ± standard deviation of {len(returns)} episodes)"
    )
    print(f"            min {returns.min():.1f}, median {np.median(returns):.1f}, max {returns.max():.1f}")
    print(f"length      {lengths.mean():.0f} agent steps")
    return 0


def exploration(player: Player, epsilon: float) -> str:
    """What ``epsilon`` is for the actions of the player's environment."""
    continuous = isinstance(player.actions, ContinuousActions)
    return f"noise of standard deviation {epsilon:g}" if continuous else f"epsilon {epsilon:g}"


def record_run(arguments: RecordArguments, shutdown: Shutdown) -> int:
    """``apex record``."""
    output = arguments.output or arguments.run / "episode.mp4"
    if output.suffix not in (".mp4", ".gif"):
        raise ConfigError(f"--output is {str(output)!r}, must end in .mp4 or .gif")
    if not output.parent.is_dir():
        raise ConfigError(f"--output is {str(output)!r}, but there is no directory {str(output.parent)!r}")
    player = load_player(arguments.run, arguments.checkpoint)
    env = make_vec(player.config.env, 1, evaluation=True, record=True)
    pictures: list[Array] = []

    def look() -> None:
        pictures.append(env.render())

    try:
        reports = evaluate(
            config=player.config,
            env=env,
            algorithm=player.algorithm,
            networks=player.networks,
            version=player.version,
            episodes=1,
            epsilon=player.config.evaluator.epsilon,
            seed=arguments.seed,
            on_step=look,
            stop=lambda: shutdown.requested or len(pictures) >= arguments.max_steps,
        )
    finally:
        env.close()
    write_video(output, pictures, arguments.fps)
    outcome = f"return {reports[0].episode_return:.1f}" if reports else "the episode was cut"
    print(f"{output}: {len(pictures)} frames, {outcome}, parameters {player.version}")
    return 0


def write_video(output: Path, pictures: list[Array], fps: int) -> None:
    """Write RGB pictures [H, W, 3] under a temporary name first, so that no half of a video is left."""
    temporary = output.with_name(f".{output.stem}-writing{output.suffix}")
    try:
        if output.suffix == ".gif":
            imageio.mimsave(temporary, pictures, duration=1000 / fps, loop=0)  # type: ignore[arg-type]
        else:
            # Without a macro block size ffmpeg would scale 210 x 160 to multiples of 16.
            imageio.mimsave(temporary, pictures, fps=fps, macro_block_size=2)  # type: ignore[arg-type]
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)

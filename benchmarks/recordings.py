"""Real steps for the measurements of the replay's data path: the same ones for ours and for every peer.

Atari games are played at random, and by a trained policy where a run of the game is given; another environment is
played at random. A recording keeps rows, not
chunks, so that ours pays for building them as an actor does, and peers get the single frames that their writers take.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
from torch import nn

from apex_actor.loop import ActorLoop
from apexrl.algorithms import CONFIGS, make_algorithm
from apexrl.algorithms.base import ActorOutput, Algorithm, TableSpec
from apexrl.config import ConfigError, ExperimentConfig, load_experiment
from apexrl.envs import env_spec, make_vec
from apexrl.experience.chunk_builder import ChunkBuilder
from apexrl.experience.decoding import decode_chunk
from apexrl.runtime.checkpoint import CheckpointStore
from apexrl.runtime.learner_snapshot import load_module
from apexrl.runtime.run_directory import RunDirectory
from apexrl.types import Array, Chunk, Scope, Signature

GAMES = ("pong", "breakout", "seaquest", "qbert")

_CONTENT = "recording.json"


class Recording(NamedTuple):
    """Consecutive rows of L lanes; the first row of each lane is the first of an episode."""

    rows: dict[str, Array]
    """Step columns, name -> [T, L, ...]."""
    scratch: dict[str, Array]
    """What initial priorities are computed from, name -> [T, L]."""
    plays: tuple[str, ...]
    """[L] game and policy of each lane, e.g. "pong, random"."""

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.rows["kind"])

    @property
    def num_lanes(self) -> int:
        """L."""
        return len(self.plays)

    @property
    def play(self) -> str:
        """For results: which play this is."""
        lanes = {play: self.plays.count(play) for play in self.plays}
        return "; ".join(f"{play}: {count} lanes of {self.num_steps} steps" for play, count in lanes.items())


class _Watched:
    """An algorithm that keeps the scratch of everything it is asked."""

    def __init__(self, algorithm: Algorithm) -> None:
        self._algorithm = algorithm
        self.scratch: list[dict[str, Array]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._algorithm, name)

    def act(self, *arguments: Any) -> ActorOutput:
        """See :class:`Algorithm`."""
        output = self._algorithm.act(*arguments)
        self.scratch.append(output.scratch)
        return output


def played_chunks(
    config: ExperimentConfig[Any], algorithm: Algorithm, networks: nn.Module, lanes: int, epsilon: float
) -> Iterator[list[Chunk]]:
    """Chunks of endless play, as an actor encodes them: those of each turn, in lane order."""
    env = make_vec(config.env, lanes)
    try:
        loop = ActorLoop(config=config, env=env, algorithm=algorithm, networks=networks, seed=config.seed)
        loop.epsilons = np.full(lanes, epsilon)
        while True:
            yield loop.step().chunks
    finally:
        env.close()


def record_chunks(config: ExperimentConfig[Any], num_items: int) -> list[Chunk]:
    """Chunks of random play that hold at least ``num_items`` items, encoded as actors encode them."""
    algorithm = make_algorithm(config, env_spec(config.env))
    chunks: list[Chunk] = []
    for made in played_chunks(config, algorithm, algorithm.make_networks(), config.actor.lanes, 1.0):
        chunks += made
        if sum(chunk.num_items for chunk in chunks) >= num_items:
            break
    return chunks


def record(
    config: ExperimentConfig[Any], algorithm: Algorithm, networks: nn.Module, *, lanes: int, steps: int, epsilon: float
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Rows and scratch, name -> [T, lanes, ...] with T = ``steps`` rounded up to whole chunks."""
    (table,) = algorithm.tables()
    watched = _Watched(algorithm)
    chunks: list[Chunk] = []
    wanted = lanes * -(-steps // table.config.signature.geometry.starts)
    for made in played_chunks(config, cast(Algorithm, watched), networks, lanes, epsilon):
        chunks += made
        if len(chunks) >= wanted:
            break
    rows = rows_of(table.config.signature, chunks, lanes)
    count = len(rows["kind"])
    scratch = {name: np.stack([one[name] for one in watched.scratch[:count]]) for name in watched.scratch[0]}
    return rows, scratch


def rows_of(signature: Signature, chunks: Sequence[Chunk], lanes: int) -> dict[str, Array]:
    """Step columns, name -> [T, lanes, ...], of full chunks that came in lane order, turn after turn.

    Raises:
        ValueError: a lane made fewer chunks than others (one without an item is not sent), so lanes cannot be told.
    """
    geometry = signature.geometry
    if len(chunks) % lanes or any(chunk.starts != geometry.starts for chunk in chunks):
        raise ValueError(f"{len(chunks)} chunks of {lanes} lanes: some lane has a short one or lacks one")
    own = slice(geometry.context, geometry.context + geometry.starts)
    decoded = [decode_chunk(signature, chunk.rows, chunk.starts, chunk.blocks) for chunk in chunks]
    rows: dict[str, Array] = {}
    for column in signature.columns:
        if column.scope is Scope.STEP:
            values = np.stack([columns[column.name][own] for columns in decoded])
            by_turn = values.reshape(-1, lanes, *values.shape[1:]).swapaxes(1, 2)
            rows[column.name] = np.ascontiguousarray(by_turn.reshape(-1, lanes, *values.shape[2:]))
    return rows


def record_own(config: ExperimentConfig[Any], *, lanes: int, steps: int) -> Recording:
    """Random play of the configuration's own environment."""
    algorithm = make_algorithm(config, env_spec(config.env))
    rows, scratch = record(config, algorithm, algorithm.make_networks(), lanes=lanes, steps=steps, epsilon=1.0)
    return Recording(rows, scratch, (f"{config.env.id}, random",) * lanes)


def is_atari(config: ExperimentConfig[Any]) -> bool:
    """Whether :func:`record_games` can play it."""
    return config.env.id.partition("/")[0] == "atari"


def record_games(
    config: ExperimentConfig[Any], runs: Sequence[Path] = (), *, games: Sequence[str] = GAMES, lanes: int, steps: int
) -> Recording:
    """Random play of every game, and play of the newest policy of every run, each with ``lanes`` lanes.

    Raises:
        ConfigError: ``config`` is not of an Atari game, or a run's play has other columns than ``config``'s.
    """
    if not is_atari(config):
        raise ConfigError(f"env.id is {config.env.id!r}, must be an Atari game (atari/...) for this benchmark")
    parts, plays = [], []
    for game in games:
        own = dataclasses.replace(config, env=dataclasses.replace(config.env, id=f"atari/{game}"))
        algorithm = make_algorithm(own, env_spec(own.env))
        parts.append(record(own, algorithm, algorithm.make_networks(), lanes=lanes, steps=steps, epsilon=1.0))
        plays.append(f"{game}, random")
    for run in runs:
        trained, algorithm, networks, updates = load_policy(run)
        epsilon = trained.evaluator.epsilon
        parts.append(record(trained, algorithm, networks, lanes=lanes, steps=steps, epsilon=epsilon))
        plays.append(f"{trained.env.id.partition('/')[2]}, trained for {updates:,} updates")
    return join(parts, plays, lanes)


def load_policy(directory: Path) -> tuple[ExperimentConfig[Any], Algorithm, nn.Module, int]:
    """Configuration, algorithm, networks and learner updates of a run's newest checkpoint.

    Unlike ``apex_cli.play.load_player`` it does not ask for the run's counters, whose form may be another version's.

    Raises:
        ConfigError: there is no run, or it has no checkpoint.
    """
    run = RunDirectory.open(directory)
    config = load_experiment(run.config_yaml, algorithm_configs=CONFIGS)
    checkpoint = CheckpointStore(run.checkpoints, read_only=True).load_newest()
    if checkpoint is None:
        raise ConfigError(f"run {directory} has no checkpoint: there is no trained policy")
    algorithm = make_algorithm(config, env_spec(config.env))
    networks = algorithm.make_networks()
    load_module(networks, checkpoint.snapshot, "online")
    return config, algorithm, networks, checkpoint.version.step


def join(
    parts: Sequence[tuple[Mapping[str, Array], Mapping[str, Array]]], plays: Sequence[str], lanes: int
) -> Recording:
    """One recording of several plays side by side, as long as the shortest.

    Raises:
        ConfigError: their columns differ in name, type or shape.
    """
    joined: list[dict[str, Array]] = []
    for of_part in zip(*parts, strict=True):
        forms = [{name: (v.dtype, v.shape[2:]) for name, v in columns.items()} for columns in of_part]
        for form, play in zip(forms, plays, strict=True):
            if form != forms[0]:
                raise ConfigError(f"play {play!r} has the columns {form}, must have {forms[0]}, as {plays[0]!r}")
        steps = min(len(values) for columns in of_part for values in columns.values())
        joined.append({name: np.concatenate([columns[name][:steps] for columns in of_part], 1) for name in forms[0]})
    return Recording(joined[0], joined[1], tuple(play for play in plays for _ in range(lanes)))


def make_builder(table: TableSpec, algorithm: Algorithm, num_lanes: int) -> ChunkBuilder:
    """What turns rows into chunks in an actor; recorded time does not pass, so no chunk is closed for its age."""
    return ChunkBuilder(table.config.signature, num_lanes, table.windows, algorithm.initial_priorities)


def rows_in_turn(
    recording: Recording,
) -> Iterator[tuple[dict[str, Array], dict[str, Array], dict[str, Array]]]:
    """Arguments of :meth:`ChunkBuilder.append` for one row of every lane after the other."""
    item_columns: dict[str, Array] = {"parameter_version": np.ones(recording.num_lanes, np.uint64)}
    for step in range(recording.num_steps):
        columns = {name: values[step] for name, values in recording.rows.items()}
        yield columns, item_columns, {name: values[step] for name, values in recording.scratch.items()}


def build_chunks(recording: Recording, table: TableSpec, algorithm: Algorithm) -> list[Chunk]:
    """All full chunks of a recording, in lane order, turn after turn."""
    builder = make_builder(table, algorithm, recording.num_lanes)
    return [chunk for row in rows_in_turn(recording) for chunk in builder.append(*row)]


def item_priorities(recording: Recording, chunks: Sequence[Chunk]) -> npt.NDArray[np.float32]:
    """[T, L] raw priority of the item that starts at each row; the mean of all where a row begins no item."""
    priorities = np.zeros((recording.num_steps, recording.num_lanes), np.float32)
    for i, chunk in enumerate(chunks):
        turn, lane = divmod(i, recording.num_lanes)
        priorities[turn * chunk.starts : (turn + 1) * chunk.starts, lane] = chunk.priorities
    missing = priorities == 0
    priorities[missing] = priorities[~missing].mean() if not missing.all() else 1.0
    return priorities


def save(recording: Recording, directory: Path, priorities: npt.NDArray[np.float32]) -> None:
    """Write a recording as plain NumPy files, which peers read in whatever environment: rows-NAME.npy and so on."""
    directory.mkdir(parents=True, exist_ok=True)
    for kind, columns in (("rows", recording.rows), ("scratch", recording.scratch)):
        for name, values in columns.items():
            np.save(directory / f"{kind}-{name}.npy", values)
    np.save(directory / "priority.npy", priorities)
    content = {"rows": list(recording.rows), "scratch": list(recording.scratch), "plays": recording.plays}
    (directory / _CONTENT).write_text(json.dumps(content), encoding="utf-8")


def load(directory: Path) -> Recording:
    """A recording that was written by :func:`save`."""
    content = json.loads((directory / _CONTENT).read_text(encoding="utf-8"))
    rows, scratch = (
        {name: np.load(directory / f"{kind}-{name}.npy") for name in content[kind]} for kind in ("rows", "scratch")
    )
    return Recording(rows, scratch, tuple(content["plays"]))

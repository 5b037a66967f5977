"""One turn of acting: evaluate the policy on all lanes, step them, and turn what happened into chunks.

The loop knows no sockets. It is driven by the actor process and by serial mode alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from apexrl.algorithms.base import ActorOutput, Algorithm
from apexrl.config import ExperimentConfig
from apexrl.env_types import VectorEnv
from apexrl.experience.chunk_builder import ChunkBuilder
from apexrl.experience.rows import EpisodeRows
from apexrl.experience.stacking import FrameStacker
from apexrl.types import Array, Chunk, EpisodeReport, ParameterVersion, RowKind


@dataclass
class PhaseSeconds:
    """Where the loop's time went, in seconds since its start."""

    env: float = 0.0
    infer: float = 0.0
    build: float = 0.0


@dataclass
class Turn:
    """What one turn brought."""

    chunks: list[Chunk] = field(default_factory=list)
    episodes: list[EpisodeReport] = field(default_factory=list)
    env_steps: int = 0


class ActorLoop:
    """Plays all lanes of a vector environment in lockstep with one copy of the policy.

    A row is made by every policy evaluation, also that of an episode's final observation (see ``apexrl.types``). The
    action of such a last row is ignored by the environment, whose autoreset answers it with the first observation of
    the next episode.
    """

    def __init__(
        self,
        *,
        config: ExperimentConfig[Any],
        env: VectorEnv,
        algorithm: Algorithm,
        networks: nn.Module,
        seed: int,
        insert: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        (table,) = algorithm.tables()
        self._env = env
        self._algorithm = algorithm
        self._networks = networks
        self._env_config = config.env
        self._generator = np.random.default_rng([seed, 1])
        lanes = env.num_lanes
        self._rows = EpisodeRows(lanes)
        self._stacker = FrameStacker(lanes, env.spec, config.env.stack)
        self._builder = (
            ChunkBuilder(
                table.config.signature,
                lanes,
                table.windows,
                algorithm.initial_priorities,
                max_chunk_age_seconds=config.actor.max_chunk_age_seconds,
                clock=clock,
            )
            if insert
            else None
        )
        self._core_state = algorithm.initial_core_state(lanes)
        self.epsilons: npt.NDArray[np.float64] = np.ones(lanes)
        self.version = ParameterVersion(0, 0)
        self.phase_seconds = PhaseSeconds()
        self._observation = env.reset(seed)
        self._returns = np.zeros(lanes)
        self._lengths = np.zeros(lanes, np.int64)
        self._stacked = self._stacker.push(self._observation, self._rows.first)

    @property
    def num_lanes(self) -> int:
        return self._env.num_lanes

    @property
    def networks(self) -> nn.Module:
        return self._networks

    def load_parameters(self, tensors: dict[str, torch.Tensor], version: ParameterVersion) -> None:
        """Use new parameters from the next turn on. Windows that are open stay open."""
        self._networks.load_state_dict(tensors)
        self.version = version

    def step(self) -> Turn:
        """One policy evaluation and one environment step of every lane."""
        started = time.perf_counter()
        output = self._algorithm.act(
            self._networks, torch.from_numpy(self._stacked), self._core_state, self.epsilons, self._generator
        )
        inferred = time.perf_counter()
        step = self._env.step(output.actions)
        stepped = time.perf_counter()

        last = self._rows.last
        acted = ~last
        columns: dict[str, Array] = {
            **self._rows.complete(step, self._training_reward(step.reward)),
            "action": self._actions_taken(output.actions, acted),
            "observation": self._observation,
            **output.step_columns,
        }
        turn = Turn(env_steps=int(np.count_nonzero(acted)))
        if self._builder is not None:
            turn.chunks = self._builder.append(columns, self._item_columns(output), output.scratch)
        np.add(self._returns, step.reward, out=self._returns, where=acted)
        self._lengths += acted
        ended = acted & (step.terminated | step.truncated)
        if ended.any():
            turn.episodes = self._close_episodes(np.flatnonzero(ended))

        self._observation = step.observation
        self._stacked = self._stacker.push(step.observation, self._rows.first)
        self._core_state = output.core_state
        for state in self._core_state.values():
            state[self._rows.first] = 0
        built = time.perf_counter()
        self.phase_seconds.infer += inferred - started
        self.phase_seconds.env += stepped - inferred
        self.phase_seconds.build += built - stepped
        return turn

    def drain(self) -> list[Chunk]:
        """Close every open window as truncated: the current observation becomes a last row."""
        if self._builder is None:
            return []
        lanes = self.num_lanes
        output = self._algorithm.act(
            self._networks, torch.from_numpy(self._stacked), self._core_state, self.epsilons, self._generator
        )
        columns: dict[str, Array] = {
            "kind": np.full(lanes, RowKind.LAST, np.uint8),
            "age": self._rows.ages,
            "reward": np.zeros(lanes, np.float32),
            "continuation": np.zeros(lanes, np.uint8),
            "action": self._actions_taken(output.actions, np.zeros(lanes, np.bool_)),
            "observation": self._observation,
            **output.step_columns,
        }
        return self._builder.drain(columns, self._item_columns(output), output.scratch)

    def _item_columns(self, output: ActorOutput) -> dict[str, Array]:
        versions = np.full(self.num_lanes, self.version.pack(), np.uint64)
        return {"parameter_version": versions, **output.item_columns}

    def _actions_taken(self, actions: Array, acted: npt.NDArray[np.bool_]) -> Array:
        """The column ``action`` [L, *action shape]: zeros for lanes that did not act."""
        spec = self._env.spec.actions
        taken = np.zeros((self.num_lanes, *spec.shape), spec.dtype)
        taken[acted] = actions[acted]
        return taken

    def _training_reward(self, reward: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        scale, clip = self._env_config.reward_scale, self._env_config.reward_clip
        scaled = reward if scale == 1.0 else reward * np.float32(scale)
        return scaled.clip(-clip, clip) if clip > 0 else scaled

    def _close_episodes(self, lanes: npt.NDArray[np.intp]) -> list[EpisodeReport]:
        reports = [
            EpisodeReport(
                episode_return=float(self._returns[lane]),
                length_steps=int(self._lengths[lane]),
                epsilon=float(self.epsilons[lane]),
                version=self.version,
                lane=int(lane),
            )
            for lane in lanes
        ]
        self._returns[lanes] = 0.0
        self._lengths[lanes] = 0
        return reports

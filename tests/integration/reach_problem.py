"""A problem with continuous actions that is learned within seconds: walk to a goal on a line."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from apexrl.config import EnvConfig
from apexrl.env_types import ContinuousActions, EnvSpec, EnvStep
from apexrl.types import Array

EPISODE_STEPS = 10
STEP_LENGTH = 0.3


def make(config: EnvConfig, num_lanes: int, *, num_threads: int, evaluation: bool) -> ReachEnv:
    """The vector environment that ``env.id`` asks for."""
    return ReachEnv(num_lanes)


class ReachEnv:
    """Reward - |x - goal| per step; observations are (x, goal), x begins at 0, the goal is uniform in [-1, 1].

    Episodes are truncated after 10 steps. Standing still returns about -5, the best policy about -0.8.
    """

    def __init__(self, num_lanes: int) -> None:
        self._num_lanes = num_lanes
        self._random = np.random.default_rng(0)
        self._x = np.zeros(num_lanes)
        self._goal = np.zeros(num_lanes)
        self._step = 0

    @property
    def spec(self) -> EnvSpec:
        return EnvSpec((2,), "float32", ContinuousActions(1))

    @property
    def num_lanes(self) -> int:
        return self._num_lanes

    def reset(self, seed: int) -> Array:
        self._random = np.random.default_rng(seed)
        return self._start()

    def step(self, actions: Array) -> EnvStep:
        never = np.zeros(self._num_lanes, np.bool_)
        if self._step == EPISODE_STEPS:
            return EnvStep(self._start(), np.zeros(self._num_lanes, np.float32), never, never, never)
        moves: npt.NDArray[np.float64] = np.asarray(actions, np.float64)[:, 0]
        self._x = self._x + STEP_LENGTH * moves
        self._step += 1
        rewards = -np.abs(self._x - self._goal).astype(np.float32)
        return EnvStep(self._observe(), rewards, never, ~never if self._step == EPISODE_STEPS else never, never)

    def render(self) -> Array:
        return np.zeros((8, 8, 3), np.uint8)

    def close(self) -> None:
        """Nothing to release."""

    def _start(self) -> Array:
        self._x = np.zeros(self._num_lanes)
        self._goal = self._random.uniform(-1.0, 1.0, self._num_lanes)
        self._step = 0
        return self._observe()

    def _observe(self) -> Array:
        return np.stack([self._x, self._goal], axis=1).astype(np.float32)

"""MinAtar games (Young & Tian 2019) as uint8 planes, vectorised by hand in one process."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from apexrl.config import EnvConfig
from apexrl.env_types import DiscreteActions, EnvSpec, EnvStep
from apexrl.envs.errors import refuse_options, unknown_name
from apexrl.envs.lanes import lane_seeds, require_actions
from apexrl.envs.pictures import picture
from apexrl.types import Array, Padding

#: As on Atari; a good player of Breakout would never end otherwise.
EVALUATION_EPISODE_FRAMES = 108_000

_GAMES = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")


@contextmanager
def _quiet_root_logger() -> Iterator[None]:
    """Without matplotlib MinAtar logs through the root logger when imported, which would install a handler there."""
    handler = logging.NullHandler()
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


with _quiet_root_logger():
    from minatar import Environment  # type: ignore[import-untyped]


def names() -> list[str]:
    """All games."""
    return list(_GAMES)


def make(
    name: str, config: EnvConfig, num_lanes: int, *, num_threads: int, evaluation: bool, record: bool
) -> MinAtarEnv:
    """Make the game ``name``; ConfigError if there is no such game."""
    refuse_options(config, "minatar", "worker_processes")
    if name not in _GAMES:
        raise unknown_name(config.id, "minatar", name, _GAMES)
    return MinAtarEnv(name, config, num_lanes, evaluation=evaluation)


class MinAtarEnv:
    """A batch of one MinAtar game; frames [C, 10, 10] uint8 of 0 and 1.

    Actions are the game's own (MinAtar's v1 ids), all 6 with ``full_action_space`` (v0, the paper's).
    ``sticky_actions`` is used as given: MinAtar's published results have 0.1. The games know no time limit of their
    own; episodes are truncated after ``max_episode_frames``.
    """

    def __init__(self, game: str, config: EnvConfig, num_lanes: int, *, evaluation: bool = False) -> None:
        self._games = [Environment(game, sticky_action_prob=config.sticky_actions) for _ in range(num_lanes)]
        height, width, channels = self._games[0].state_shape()
        own = self._games[0].minimal_action_set()
        self._action_numbers = list(range(self._games[0].num_actions())) if config.full_action_space else own
        self._max_frames = EVALUATION_EPISODE_FRAMES if evaluation else config.max_episode_frames
        self._spec = EnvSpec(
            observation_shape=(int(channels), int(height), int(width)),
            observation_dtype="uint8",
            actions=DiscreteActions(len(self._action_numbers)),
            action_repeat=1,
            padding=Padding.ZEROS,
        )
        self._frames = np.zeros(num_lanes, np.int64)
        self._ended = np.ones(num_lanes, np.bool_)
        self._latest: Array | None = None

    @property
    def spec(self) -> EnvSpec:
        return self._spec

    @property
    def num_lanes(self) -> int:
        return len(self._games)

    def reset(self, seed: int) -> Array:
        """Start all lanes; returns the first frames [L, C, 10, 10]."""
        for game, lane_seed in zip(self._games, lane_seeds(seed, self.num_lanes), strict=True):
            game.seed(int(lane_seed))
            game.last_action = 0  # sticky actions reach back over a reset
            game.reset()
        self._frames = np.zeros(self.num_lanes, np.int64)
        self._ended = np.zeros(self.num_lanes, np.bool_)
        return self._observe()

    def step(self, actions: Array) -> EnvStep:
        """Step all lanes by ``actions`` [L]; RuntimeError before the first reset, ValueError for unknown actions."""
        if self._latest is None:
            raise RuntimeError("reset(seed) must come before the first step")
        numbers = require_actions(actions, self.num_lanes, self._spec.num_actions)
        rewards = np.zeros(self.num_lanes, np.float32)
        terminated = np.zeros(self.num_lanes, np.bool_)
        self._frames += 1
        ended = self._ended.tolist()
        for lane, (game, action) in enumerate(zip(self._games, numbers.tolist(), strict=True)):
            if ended[lane]:
                game.reset()
                self._frames[lane] = 0
            else:
                rewards[lane], terminated[lane] = game.act(self._action_numbers[action])
        truncated = (self._frames >= self._max_frames) & ~terminated
        self._ended = terminated | truncated
        return EnvStep(self._observe(), rewards, terminated, truncated, np.zeros(self.num_lanes, np.bool_))

    def render(self) -> Array:
        """Lane 0 as [H, W, 3] uint8, one colour per channel."""
        if self._latest is None:
            raise RuntimeError("reset(seed) must come before render")
        return picture(self._latest[0])

    def close(self) -> None:
        """Nothing to release."""

    def _observe(self) -> Array:
        frames = np.empty((self.num_lanes, *self._spec.observation_shape), np.uint8)
        for lane, game in enumerate(self._games):
            frames[lane] = game.state().transpose(2, 0, 1)
        self._latest = frames
        return frames

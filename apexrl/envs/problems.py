"""Small problems without dependencies: Catch, and an environment that plays a script.

Catch follows bsuite (Osband et al. 2020): a ball falls through a board of 10 x 5, the player moves a paddle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from apexrl.config import EnvConfig
from apexrl.env_types import DiscreteActions, EnvSpec, EnvStep
from apexrl.envs.errors import refuse_options, unknown_name
from apexrl.envs.lanes import require_actions
from apexrl.envs.pictures import picture
from apexrl.types import Array, Padding

_NAMES = ("catch", "scripted")


def names() -> list[str]:
    """All problems."""
    return list(_NAMES)


def make(
    name: str, config: EnvConfig, num_lanes: int, *, num_threads: int, evaluation: bool, record: bool
) -> CatchEnv | ScriptedEnv:
    """Make the problem ``name``; ConfigError if there is no such problem."""
    refuse_options(config, "apex", "sticky_actions", "full_action_space", "worker_processes")
    if name == "catch":
        return CatchEnv(num_lanes)
    if name == "scripted":
        return ScriptedEnv(default_scripts(num_lanes), mark_life_losses=config.life_loss_ends and not evaluation)
    raise unknown_name(config.id, "apex", name, _NAMES)


class CatchEnv:
    """Catch: reward +1 if the paddle is under the ball when it lands, else -1; every episode has 9 steps.

    Observations are the board's 50 cells, row by row, as float32 zeros and ones. Actions move the paddle left, not
    at all, or right. A random player's mean return is about -0.6, the best is 1.
    """

    ROWS = 10
    COLUMNS = 5

    def __init__(self, num_lanes: int) -> None:
        self._num_lanes = num_lanes
        self._random = np.random.default_rng(0)
        self._ball_row = np.zeros(num_lanes, np.int64)
        self._ball_column = np.zeros(num_lanes, np.int64)
        self._paddle = np.zeros(num_lanes, np.int64)
        self._board: Array | None = None

    @property
    def spec(self) -> EnvSpec:
        return EnvSpec((self.ROWS * self.COLUMNS,), "float32", DiscreteActions(3), padding=Padding.ZEROS)

    @property
    def num_lanes(self) -> int:
        return self._num_lanes

    def reset(self, seed: int) -> Array:
        """Start all lanes; returns the first boards [L, 50]."""
        self._random = np.random.default_rng(seed)
        self._start(np.ones(self._num_lanes, np.bool_))
        return self._observe()

    def step(self, actions: Array) -> EnvStep:
        """Step all lanes by ``actions`` [L] in {0: left, 1: stay, 2: right}."""
        if self._board is None:
            raise RuntimeError("reset(seed) must come before the first step")
        numbers = require_actions(actions, self._num_lanes, 3)
        ended = self._ball_row == self.ROWS - 1
        self._paddle = np.clip(self._paddle + numbers - 1, 0, self.COLUMNS - 1)
        self._ball_row = self._ball_row + 1
        self._start(ended)
        terminated = self._ball_row == self.ROWS - 1
        caught = np.where(self._paddle == self._ball_column, 1.0, -1.0)
        rewards = np.where(terminated, caught, 0.0).astype(np.float32)
        never = np.zeros(self._num_lanes, np.bool_)
        return EnvStep(self._observe(), rewards, terminated, never, never.copy())

    def render(self) -> Array:
        """The board of lane 0 as [H, W, 3] uint8."""
        if self._board is None:
            raise RuntimeError("reset(seed) must come before render")
        return picture(self._board[0].reshape(self.ROWS, self.COLUMNS))

    def close(self) -> None:
        """Nothing to release."""

    def _start(self, lanes: npt.NDArray[np.bool_]) -> None:
        self._ball_row = np.where(lanes, 0, self._ball_row)
        self._paddle = np.where(lanes, self.COLUMNS // 2, self._paddle)
        columns = self._random.integers(0, self.COLUMNS, int(lanes.sum()))
        self._ball_column[lanes] = columns

    def _observe(self) -> Array:
        board = np.zeros((self._num_lanes, self.ROWS, self.COLUMNS), np.float32)
        lanes = np.arange(self._num_lanes)
        board[lanes, self._ball_row, self._ball_column] = 1.0
        board[lanes, self.ROWS - 1, self._paddle] = 1.0
        self._board = board.reshape(self._num_lanes, -1)
        return self._board


@dataclass(frozen=True)
class ScriptedEpisode:
    """An episode of ``length`` steps. ``life_losses`` are the steps, counted from 1, at which a life is lost."""

    length: int
    truncated: bool = False
    """It ends by truncation instead of termination."""
    life_losses: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length is {self.length}, must be at least 1")
        last = self.length if self.truncated else self.length - 1
        if any(not 1 <= step <= last for step in self.life_losses):
            raise ValueError(f"life_losses are {self.life_losses}, must be in [1, {last}]")


def default_scripts(num_lanes: int) -> list[list[ScriptedEpisode]]:
    """Short and long episodes of both endings, with and without life losses, out of phase between lanes."""
    episodes = [
        ScriptedEpisode(3),
        ScriptedEpisode(5, truncated=True, life_losses=(2,)),
        ScriptedEpisode(1),
        ScriptedEpisode(8, life_losses=(3, 4)),
        ScriptedEpisode(1, truncated=True),
        ScriptedEpisode(13, truncated=True, life_losses=(13,)),
    ]
    shifts = [lane % len(episodes) for lane in range(num_lanes)]
    return [episodes[shift:] + episodes[:shift] for shift in shifts]


class ScriptedEnv:
    """Plays scripts, whatever the actions and the seed; observations tell where they come from.

    Lane l plays ``scripts[l]``, again from the start after its last episode. The frame of (lane, episode, step) is
    decoded by :func:`decode_observation`; it is never all zeros, so padding is told apart from every frame. The
    reward of a step is :func:`scripted_reward` of the step it leads to.
    """

    def __init__(
        self,
        scripts: Sequence[Sequence[ScriptedEpisode]],
        *,
        observation_shape: tuple[int, ...] = (6, 6),
        num_actions: int = 4,
        padding: Padding = Padding.ZEROS,
        mark_life_losses: bool = True,
    ) -> None:
        if not scripts or any(not script for script in scripts):
            raise ValueError("scripts must hold at least one episode for each of at least one lane")
        if int(np.prod(observation_shape)) < 5:
            raise ValueError(f"observation_shape is {observation_shape}, must have at least 5 elements")
        self._scripts = [tuple(script) for script in scripts]
        self._mark_life_losses = mark_life_losses
        self._spec = EnvSpec(observation_shape, "uint8", DiscreteActions(num_actions), padding=padding)
        self._episode = [0] * len(scripts)
        self._step = [0] * len(scripts)
        self._started = False

    @property
    def spec(self) -> EnvSpec:
        return self._spec

    @property
    def num_lanes(self) -> int:
        return len(self._scripts)

    def reset(self, seed: int) -> Array:
        """Start all lanes at their first episode; returns the first frames [L, *observation_shape]."""
        self._episode = [0] * self.num_lanes
        self._step = [0] * self.num_lanes
        self._started = True
        return self._observe()

    def step(self, actions: Array) -> EnvStep:
        """Step all lanes; ``actions`` [L] are checked but change nothing."""
        if not self._started:
            raise RuntimeError("reset(seed) must come before the first step")
        require_actions(actions, self.num_lanes, self._spec.num_actions)
        rewards = np.zeros(self.num_lanes, np.float32)
        terminated, truncated, life_lost = (np.zeros(self.num_lanes, np.bool_) for _ in range(3))
        for lane, script in enumerate(self._scripts):
            episode = script[self._episode[lane] % len(script)]
            if self._step[lane] == episode.length:
                self._episode[lane] += 1
                self._step[lane] = 0
                continue
            self._step[lane] += 1
            step = self._step[lane]
            rewards[lane] = scripted_reward(lane, self._episode[lane], step)
            terminated[lane] = step == episode.length and not episode.truncated
            truncated[lane] = step == episode.length and episode.truncated
            life_lost[lane] = self._mark_life_losses and step in episode.life_losses
        return EnvStep(self._observe(), rewards, terminated, truncated, life_lost)

    def render(self) -> Array:
        """The frame of lane 0 as [H, W, 3] uint8."""
        return picture(self._observe()[0])

    def close(self) -> None:
        """Nothing to release."""

    def _observe(self) -> Array:
        shape = self._spec.observation_shape
        places = zip(range(self.num_lanes), self._episode, self._step, strict=True)
        return np.stack([encode_observation(lane, episode, step, shape) for lane, episode, step in places])


def scripted_reward(lane: int, episode: int, step: int) -> float:
    """Reward of the step that leads to ``step`` (from 1) of an episode."""
    return float(step + 100 * (episode % 100) + 10_000 * lane)


def encode_observation(lane: int, episode: int, step: int, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """The frame of a scripted environment: lane + 1, episode and step (two bytes each), then a pattern of them."""
    size = int(np.prod(shape))
    frame = (np.arange(size) * 7 + lane * 31 + episode * 17 + step * 5).astype(np.uint8)
    frame[:5] = (lane + 1, episode & 255, episode >> 8, step & 255, step >> 8)
    return frame.reshape(shape)


def decode_observation(frame: Array) -> tuple[int, int, int]:
    """(lane, episode, step) of a scripted frame; ValueError if it is none (padding, or mixed up)."""
    values = [int(value) for value in frame.ravel()[:5]]
    lane, episode, step = values[0] - 1, values[1] | values[2] << 8, values[3] | values[4] << 8
    if lane < 0 or not np.array_equal(encode_observation(lane, episode, step, frame.shape), frame):
        raise ValueError(f"not a scripted frame: it starts with {values}")
    return lane, episode, step

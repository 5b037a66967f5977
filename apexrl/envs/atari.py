"""Atari 2600 games through ale-py's native vector environment.

Preprocessing of Mnih et al. 2015 (action repeat, maximum over the last two raw frames, luminance, 84 x 84). One
frame per row comes out; stacking is the actor's. ``AtariVectorEnv`` itself pads stacks with zeros at a reset, hence
``Padding.ZEROS``.
"""

from __future__ import annotations

import ale_py
import numpy as np
import numpy.typing as npt
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode

from apexrl.config import ConfigError, EnvConfig
from apexrl.env_types import DiscreteActions, EnvSpec, EnvStep
from apexrl.envs.errors import refuse_options, unknown_name
from apexrl.envs.lanes import lane_seeds, require_actions
from apexrl.envs.pictures import picture
from apexrl.types import Array, Padding

FRAME_SIDE = 84

#: Evaluations are cut after 30 minutes of play at 60 frames/s, the literature's limit.
EVALUATION_EPISODE_FRAMES = 108_000

#: Known to ale-py, but without a one-player mode: loading one ends the process.
_TWO_PLAYER_GAMES = frozenset({"combat", "joust", "maze_craze", "warlords"})


def names() -> list[str]:
    """All games, in ale-py's snake case."""
    return sorted(set(roms.get_all_rom_ids()) - _TWO_PLAYER_GAMES)


def make(name: str, config: EnvConfig, num_lanes: int, *, num_threads: int, evaluation: bool, record: bool) -> AtariEnv:
    """Make the game ``name``; ConfigError if ale-py has no such game or its ROM is missing."""
    refuse_options(config, "atari", "worker_processes")
    _require_game(name, config.id)
    return AtariEnv(name, config, num_lanes, num_threads=num_threads, evaluation=evaluation, record=record)


class AtariEnv:
    """A batch of one Atari game. Rewards are never clipped; an episode ends only with the game or the frame limit
    (which ale-py counts from the first step on: the no-ops at the start are not part of it).

    Life losses come from the emulator's count of lives: a count that fell and is not 0, in a game that goes on. The
    emulator's own flag for it (``life_loss_info``) raises ``terminated`` for life losses and for game over alike and
    leaves it to the reader to tell them apart; it stays off.
    """

    def __init__(
        self,
        game: str,
        config: EnvConfig,
        num_lanes: int,
        *,
        num_threads: int = 1,
        evaluation: bool = False,
        record: bool = False,
    ) -> None:
        frames = EVALUATION_EPISODE_FRAMES if evaluation else config.max_episode_frames
        threads = min(num_threads, num_lanes)
        self._vector: AtariVectorEnv | None = _make_vector(game, config, num_lanes, threads, frames, colour=False)
        # The colour picture of lane 0 comes from a second emulator that gets the same seed and the same actions.
        self._colour = _make_vector(game, config, 1, 1, frames, colour=True) if record else None
        self._marks_life_loss = config.life_loss_ends and not evaluation
        self._num_lanes = num_lanes
        self._spec = EnvSpec(
            observation_shape=(FRAME_SIDE, FRAME_SIDE),
            observation_dtype="uint8",
            actions=DiscreteActions(len(self._vector.ale.get_action_set())),
            action_repeat=config.action_repeat,
            padding=Padding.ZEROS,
        )
        self._lives: npt.NDArray[np.int32] | None = None
        self._ended = np.zeros(num_lanes, np.bool_)
        self._picture: Array | None = None

    @property
    def spec(self) -> EnvSpec:
        return self._spec

    @property
    def num_lanes(self) -> int:
        return self._num_lanes

    @property
    def actions(self) -> list[str]:
        """Names of the actions, in the order of their numbers."""
        return [action.name for action in self._open().ale.get_action_set()]

    def reset(self, seed: int) -> Array:
        """Start all lanes; returns the first frames [L, 84, 84] uint8.

        Seeding reloads the ROM, about 0.1 s a lane: for the start of a run, not for every episode.
        """
        seeds = lane_seeds(seed, self._num_lanes)
        observations, info = self._open().reset(seed=seeds)
        self._lives = info["lives"]
        self._ended = np.zeros(self._num_lanes, np.bool_)
        self._picture = observations[0, 0]
        if self._colour is not None:
            colours, _ = self._colour.reset(seed=seeds[:1])
            self._picture = colours[0, 0]
        frames: Array = observations[:, 0]
        return frames

    def step(self, actions: Array) -> EnvStep:
        """Step all lanes by ``actions`` [L]; RuntimeError before the first reset, ValueError for unknown actions."""
        if self._lives is None:
            raise RuntimeError("reset(seed) must come before the first step")
        numbers = require_actions(actions, self._num_lanes, self._spec.num_actions)
        observations, rewards, terminated, truncated, info = self._open().step(numbers)
        lives = info["lives"]
        if self._marks_life_loss:
            # A reset may lower the count too (after bonus lives): the step after an end is no life loss.
            life_lost = (lives < self._lives) & (lives > 0) & ~terminated & ~self._ended
        else:
            life_lost = np.zeros(self._num_lanes, np.bool_)
        self._lives = lives
        self._ended = terminated | truncated
        self._picture = observations[0, 0]
        if self._colour is not None:
            self._picture = self._colour.step(numbers[:1])[0][0, 0]
        return EnvStep(observations[:, 0], rewards.astype(np.float32), terminated, truncated, life_lost)

    def render(self) -> Array:
        """Lane 0 as [H, W, 3] uint8: the emulator's picture if made with ``record``, else the frame in grey."""
        if self._picture is None:
            raise RuntimeError("reset(seed) must come before render")
        return np.array(self._picture) if self._colour is not None else picture(self._picture)

    def close(self) -> None:
        """End the emulators and their threads. A second call does nothing."""
        # AtariVectorEnv.close keeps the threads; only letting go of it ends them.
        self._vector = self._colour = None

    def _open(self) -> AtariVectorEnv:
        if self._vector is None:
            raise RuntimeError("the environment is closed")
        return self._vector


def _make_vector(
    game: str, config: EnvConfig, num_lanes: int, num_threads: int, max_episode_frames: int, *, colour: bool
) -> AtariVectorEnv:
    """Every option is explicit: several of ale-py's defaults (reward clipping, for one) are not ours."""
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    return AtariVectorEnv(
        game,
        num_lanes,
        batch_size=0,  # all lanes in one batch, in order
        num_threads=num_threads,
        thread_affinity_offset=-1,
        max_num_frames_per_episode=max_episode_frames,
        repeat_action_probability=config.sticky_actions,
        full_action_space=config.full_action_space,
        continuous=False,
        continuous_action_threshold=0.5,
        autoreset_mode=AutoresetMode.NEXT_STEP,
        img_height=210 if colour else FRAME_SIDE,
        img_width=160 if colour else FRAME_SIDE,
        grayscale=not colour,
        stack_num=1,
        frameskip=config.action_repeat,
        maxpool=True,
        noop_max=config.noop_max,
        episodic_life=False,
        life_loss_info=False,
        reward_clipping=False,
        use_fire_reset=config.fire_reset,
    )


def _require_game(name: str, env_id: str) -> None:
    if name in _TWO_PLAYER_GAMES:
        raise ConfigError(f"env.id is {env_id!r}: {name!r} has no one-player mode, choose another game")
    if name not in names():
        raise unknown_name(env_id, "atari", name, names())
    try:
        path = roms.get_rom_path(name)
    except OSError as error:
        raise ConfigError(
            f"env.id is {env_id!r}: the ROM file {name}.bin is missing or damaged ({error}); ROMs come with ale-py: "
            "pip install --force-reinstall ale-py, and unset ALE_ROMS_DIR or point it at a folder with that file"
        ) from error
    if path is None:
        raise unknown_name(env_id, "atari", name, names())

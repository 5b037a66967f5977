"""Environments registered with gymnasium, stepped one after another in the caller's thread."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, Space
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from apexrl.config import ConfigError, EnvConfig
from apexrl.envs.errors import refuse_options, unknown_name
from apexrl.envs.lanes import lane_seeds, require_actions
from apexrl.envs.pictures import picture
from apexrl.types import Array, DiscreteActions, EnvSpec, EnvStep, Padding

#: The last axis of an image space holds its channels; a longer one is no channel axis.
MAX_CHANNELS = 16


def names() -> list[str]:
    """All registered ids."""
    return sorted(gymnasium.registry)


def make(
    name: str, config: EnvConfig, num_lanes: int, *, num_threads: int, evaluation: bool, record: bool
) -> GymnasiumEnv:
    """Make ``num_lanes`` of the registered id ``name`` (also MODULE:ID, as gymnasium understands it)."""
    refuse_options(config, "gymnasium", "sticky_actions", "full_action_space")
    makers = [
        functools.partial(_make_one, name, config.id, "rgb_array" if record and lane == 0 else None)
        for lane in range(num_lanes)
    ]
    # Always SyncVectorEnv: a vector entry point of an environment's own may reset and truncate in its own way.
    vector = SyncVectorEnv(makers, copy=True, autoreset_mode=AutoresetMode.NEXT_STEP)
    try:
        return GymnasiumEnv(vector, env_id=config.id)
    except ConfigError:
        vector.close()
        raise


class GymnasiumEnv:
    """A gymnasium vector environment as a :class:`~apexrl.types.VectorEnv`; also for vector environments of your own.

    Actions must be Discrete. Observations must be a Box: one-dimensional ones become float32 vectors, uint8 images
    [H, W, C] become [C, H, W], uint8 planes [H, W] stay.

    Raises:
        ConfigError: Another space, or another autoreset mode than NEXT_STEP.
    """

    def __init__(
        self, vector: gymnasium.vector.VectorEnv[Any, Any, Any], *, env_id: str = "", action_repeat: int = 1
    ) -> None:
        env_id = env_id or type(vector).__name__
        mode = vector.metadata.get("autoreset_mode")
        if mode not in (AutoresetMode.NEXT_STEP, AutoresetMode.NEXT_STEP.value):
            raise ConfigError(f"env.id is {env_id!r}: its metadata['autoreset_mode'] is {mode!r}, must be NEXT_STEP")
        shape, dtype = _observation_layout(vector.single_observation_space, env_id)
        action_space = vector.single_action_space
        if not isinstance(action_space, Discrete):
            raise ConfigError(f"env.id is {env_id!r}: its action space is {action_space}, must be Discrete")
        self._vector = vector
        self._channels_last = len(shape) == 3
        self._first_action = int(action_space.start)
        self._spec = EnvSpec(
            observation_shape=shape,
            observation_dtype=dtype,
            actions=DiscreteActions(int(action_space.n)),
            action_repeat=action_repeat,
            padding=Padding.REPEAT_FIRST,
        )
        self._latest: Array | None = None
        self._closed = False

    @property
    def spec(self) -> EnvSpec:
        return self._spec

    @property
    def num_lanes(self) -> int:
        return self._vector.num_envs

    def reset(self, seed: int) -> Array:
        """Start all lanes; returns the first observations [L, *observation_shape]."""
        seeds: Any = lane_seeds(seed, self.num_lanes).tolist()  # VectorEnv's own annotation knows a single seed only
        observations, _ = self._vector.reset(seed=seeds)
        return self._convert(observations)

    def step(self, actions: Array) -> EnvStep:
        """Step all lanes by ``actions`` [L]; ValueError for unknown actions."""
        numbers = require_actions(actions, self.num_lanes, self._spec.num_actions)
        observations, rewards, terminated, truncated, _ = self._vector.step(numbers + self._first_action)
        return EnvStep(
            self._convert(observations),
            np.array(rewards, np.float32),
            np.array(terminated, np.bool_),
            np.array(truncated, np.bool_),
            np.zeros(self.num_lanes, np.bool_),
        )

    def render(self) -> Array:
        """Lane 0 as [H, W, 3] uint8: the environment's own picture where it can draw one, else the observation."""
        drawn = self._draw()
        if drawn is not None:
            return drawn
        if self._latest is None:
            raise RuntimeError("reset(seed) must come before render")
        return picture(self._latest[0])

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._vector.close()

    def _draw(self) -> Array | None:
        envs = getattr(self._vector, "envs", None)
        if not envs or envs[0].render_mode != "rgb_array":
            return None
        with contextlib.suppress(gymnasium.error.DependencyNotInstalled):
            return np.asarray(envs[0].render(), np.uint8)
        return None

    def _convert(self, observations: Any) -> Array:
        array: Array = np.asarray(observations)
        if self._channels_last:
            array = np.ascontiguousarray(array.transpose(0, 3, 1, 2))
        self._latest = array = array.astype(self._spec.observation_dtype, copy=False)
        return array


def _observation_layout(space: Space[Any], env_id: str) -> tuple[tuple[int, ...], str]:
    """(shape, dtype) of the observations we hand out for ``space``."""
    if isinstance(space, Box):
        shape = tuple(int(size) for size in space.shape)
        if len(shape) == 1:
            return shape, "float32"
        if space.dtype == np.uint8 and len(shape) == 2:
            return shape, "uint8"
        if space.dtype == np.uint8 and len(shape) == 3 and shape[2] <= MAX_CHANNELS:
            return (shape[2], shape[0], shape[1]), "uint8"
    raise ConfigError(
        f"env.id is {env_id!r}: its observation space is {space}, must be a one-dimensional Box, or a uint8 Box "
        f"[H, W] or [H, W, C] with C <= {MAX_CHANNELS}"
    )


def _make_one(name: str, env_id: str, render_mode: str | None) -> gymnasium.Env[Any, Any]:
    try:
        return gymnasium.make(name, render_mode=render_mode, disable_env_checker=True)
    except gymnasium.error.UnregisteredEnv as error:
        raise unknown_name(env_id, "gymnasium", name, names()) from error
    except (gymnasium.error.DependencyNotInstalled, ModuleNotFoundError) as error:
        raise ConfigError(f"env.id is {env_id!r}, but a package it needs is not installed: {error}") from error
    except gymnasium.error.Error as error:
        raise ConfigError(f"env.id is {env_id!r}: {error}") from error

"""Environments registered with gymnasium, stepped one after another by the caller or by worker processes."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from apexrl.config import ConfigError, EnvConfig
from apexrl.env_types import ActionSpec, DiscreteActions, EnvSpec, EnvStep
from apexrl.envs.errors import refuse_options, unknown_name
from apexrl.envs.lanes import lane_seeds, require_actions
from apexrl.envs.offscreen import no_graphics_driver
from apexrl.envs.pictures import picture
from apexrl.envs.spaces import BoundedActions, ObservationLayout
from apexrl.envs.worker_processes import Maker, WorkerVectorEnv
from apexrl.types import Array, Padding

#: Folder of gymnasium's entry points -> the extra of this package that brings what they import.
_EXTRAS = {"gymnasium.envs.mujoco": "mujoco"}


def names() -> list[str]:
    """All registered ids."""
    return sorted(gymnasium.registry)


def make(
    name: str, config: EnvConfig, num_lanes: int, *, num_threads: int, evaluation: bool, record: bool
) -> GymnasiumEnv:
    """Make ``num_lanes`` of the registered id ``name`` (also MODULE:ID, as gymnasium understands it)."""
    refuse_options(config, "gymnasium", "sticky_actions", "full_action_space")
    makers = [
        functools.partial(make_env, name, config.id, "rgb_array" if record and lane == 0 else None)
        for lane in range(num_lanes)
    ]
    return make_lanes(makers, config, draw_in_worker=record and _extra(name) == "mujoco")


def make_lanes(makers: Sequence[Maker], config: EnvConfig, *, draw_in_worker: bool) -> GymnasiumEnv:
    """One lane per maker, stepped by ``config.worker_processes`` processes; a single lane by the caller.

    With ``draw_in_worker`` there is at least one process, which can draw lane 0 (see :mod:`apexrl.envs.offscreen`).
    """
    vector: gymnasium.vector.VectorEnv[Any, Any, Any]
    if draw_in_worker or (config.worker_processes > 0 and len(makers) > 1):
        vector = WorkerVectorEnv(makers, max(1, config.worker_processes), config.id, draw=draw_in_worker)
    else:
        # Never a vector entry point of an environment's own, which may reset and truncate in its own way.
        vector = SyncVectorEnv(makers, copy=True, autoreset_mode=AutoresetMode.NEXT_STEP)
    try:
        return GymnasiumEnv(vector, env_id=config.id)
    except ConfigError:
        vector.close()
        raise


class GymnasiumEnv:
    """A gymnasium vector environment, also your own, as a :class:`~apexrl.env_types.VectorEnv`.

    Actions must be Discrete, or a Box of finite bounds, to which [-1, 1] is mapped
    (:class:`~apexrl.envs.spaces.BoundedActions`). Observations are laid out by
    :class:`~apexrl.envs.spaces.ObservationLayout`.

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
        self._layout = ObservationLayout(vector.single_observation_space, env_id)
        action_space = vector.single_action_space
        self._bounds: BoundedActions | None = None
        self._first_action = 0
        actions: ActionSpec
        if isinstance(action_space, Box):
            self._bounds = BoundedActions(action_space, env_id)
            actions = self._bounds.spec
        elif isinstance(action_space, Discrete):
            self._first_action = int(action_space.start)
            actions = DiscreteActions(int(action_space.n))
        else:
            raise ConfigError(f"env.id is {env_id!r}: its action space is {action_space}, must be Discrete or a Box")
        self._vector = vector
        self._env_id = env_id
        self._spec = EnvSpec(
            observation_shape=self._layout.shape,
            observation_dtype=self._layout.dtype,
            actions=actions,
            action_repeat=action_repeat,
            padding=Padding.REPEAT_FIRST,
        )
        self._latest: Array | None = None
        self._closed = False
        self._can_draw = True

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
        """Step all lanes by ``actions``, [L] numbers or [L, A] in [-1, 1]; ValueError for others."""
        if self._bounds is None:
            own: Array = require_actions(actions, self.num_lanes, self._spec.num_actions) + self._first_action
        else:
            own = self._bounds.to_bounds(actions, self.num_lanes)
        observations, rewards, terminated, truncated, _ = self._vector.step(own)
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
        vector: Any = self._vector
        envs: Any = getattr(vector, "envs", None)
        in_worker = isinstance(vector, WorkerVectorEnv) and vector.draws
        if not self._can_draw or not (in_worker or (envs and envs[0].render_mode == "rgb_array")):
            return None
        try:
            return np.asarray(vector.draw() if in_worker else envs[0].render(), np.uint8)
        except Exception as error:  # graphics drivers fail in their own ways; play goes on without
            self._can_draw = False
            warnings.warn(
                f"env.id is {self._env_id!r}: it cannot be drawn here ({type(error).__name__}: {error}); pictures show "
                "the observations instead",
                RuntimeWarning,
                stacklevel=2,
            )
        return None

    def _convert(self, observations: Any) -> Array:
        self._latest = self._layout.convert(observations)
        return self._latest


def make_env(name: str, env_id: str, render_mode: str | None) -> gymnasium.Env[Any, Any]:
    """One environment of a registered id; ConfigError, in the words of ``env_id``, if it cannot be made."""
    drawn_here = render_mode is not None and _extra(name) != "mujoco"
    try:
        with contextlib.nullcontext() if drawn_here else no_graphics_driver():
            return gymnasium.make(name, render_mode=render_mode, disable_env_checker=True)
    except gymnasium.error.UnregisteredEnv as error:
        raise unknown_name(env_id, "gymnasium", name, names()) from error
    except (gymnasium.error.DependencyNotInstalled, ModuleNotFoundError) as error:
        extra = _extra(name)
        hint = f"; get it with: pip install 'apex-rl[{extra}]'" if extra else ""
        raise ConfigError(f"env.id is {env_id!r}, but a package it needs is not installed: {error}{hint}") from error
    except gymnasium.error.Error as error:
        raise ConfigError(f"env.id is {env_id!r}: {error}") from error


def _extra(name: str) -> str:
    """The extra of this package that brings what a registered id needs, "" if none does."""
    spec = gymnasium.registry.get(name)
    entry_point = spec.entry_point if spec is not None and isinstance(spec.entry_point, str) else ""
    for folder, extra in _EXTRAS.items():
        if entry_point.startswith(folder):
            return extra
    return ""

"""The control suite of dm_control (Tassa et al. 2018) as ``dm_control/DOMAIN-TASK``, for example cheetah-run.

A thin adapter to gymnasium; lanes, flattening of observations and bounds of actions are those of the gymnasium suite.
Every episode of the suite has a time limit, which truncates it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

from apexrl.config import EnvConfig
from apexrl.envs.errors import refuse_options, unknown_name
from apexrl.envs.gymnasium_env import GymnasiumEnv, make_lanes
from apexrl.envs.offscreen import no_graphics_driver
from apexrl.types import Array

#: Size of pictures in pixels.
HEIGHT, WIDTH = 240, 320

#: Models that are drawn at random when a task is loaded (the suite's lqr) are the same for all lanes and actors.
MODEL_SEED = 0


def _import_suite() -> Any:
    """The module ``dm_control.suite``, with its renderer where this process may draw and can."""
    with no_graphics_driver():
        try:
            from dm_control import suite
        except ModuleNotFoundError:
            raise
        except Exception:  # the graphics driver, in its own way; no reason not to simulate
            os.environ["MUJOCO_GL"] = "disable"
            from dm_control import suite
    return suite


_suite = _import_suite()


def names() -> list[str]:
    """All tasks of the suite as DOMAIN-TASK."""
    return sorted(f"{domain}-{task}" for domain, task in _suite.ALL_TASKS)


def make(
    name: str, config: EnvConfig, num_lanes: int, *, num_threads: int, evaluation: bool, record: bool
) -> GymnasiumEnv:
    """Make ``num_lanes`` of the task ``name``; ConfigError if the suite has no such task."""
    refuse_options(config, "dm_control", "sticky_actions", "full_action_space")
    if name not in names():
        raise unknown_name(config.id, "dm_control", name, names())
    domain, _, task = name.partition("-")
    makers = [
        functools.partial(ControlTask, domain, task, "rgb_array" if record and lane == 0 else None)
        for lane in range(num_lanes)
    ]
    return make_lanes(makers, config, draw_in_worker=record)


class ControlTask(gymnasium.Env[dict[str, Array], Array]):
    """One task of the suite as a gymnasium environment.

    An end with discount 0 is a termination, one with a discount above 0 a truncation (the time limit). Observations
    are a Dict in the task's own order.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, domain: str, task: str, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self._env = _suite.load(domain, task, task_kwargs={"random": MODEL_SEED})
        parts = self._env.observation_spec()
        self.observation_space: Any = Dict(
            {name: Box(-np.inf, np.inf, part.shape, part.dtype) for name, part in parts.items()}, sort_keys=False
        )
        spec = self._env.action_spec()
        self.action_space = Box(
            np.broadcast_to(spec.minimum, spec.shape), np.broadcast_to(spec.maximum, spec.shape), spec.shape, spec.dtype
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """Start an episode; a ``seed`` seeds all that the task draws from then on."""
        super().reset(seed=seed)
        if seed is not None:
            self._env.task.random.seed(seed)
        return _arrays(self._env.reset().observation), {}

    def step(self, action: Array) -> tuple[dict[str, Array], float, bool, bool, dict[str, Any]]:
        """One control step."""
        step = self._env.step(action)
        terminated = bool(step.last() and step.discount == 0.0)
        return _arrays(step.observation), float(step.reward), terminated, bool(step.last()) and not terminated, {}

    def render(self) -> Array:
        """The task's first camera [240, 320, 3] uint8."""
        physics = self._env.physics
        picture: Array = physics.render(HEIGHT, WIDTH, camera_id=0 if physics.model.ncam else -1)
        return picture

    def close(self) -> None:
        self._env.close()


def _arrays(observation: Mapping[str, Any]) -> dict[str, Array]:
    """Some parts are numbers, not arrays."""
    return {name: np.asarray(part) for name, part in observation.items()}

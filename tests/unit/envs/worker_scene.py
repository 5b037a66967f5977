"""Environments that a worker process can make: registered where this module is imported (worker_scene:ID)."""

from __future__ import annotations

import os
import signal
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete

from apexrl.types import Array


class Walk(gymnasium.Env[dict[str, Array], Any]):
    """A seeded random walk of two parts; ends now and then, by termination or by the limit of its registration.

    The action 2 fails as ``fault`` says.
    """

    observation_space = Dict({"b": Box(-9, 9, (2,), np.float64), "a": Box(-9, 9, (), np.float64)})
    action_space = Discrete(3)

    def __init__(self, fault: str = "", render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self._fault = fault
        self._place = np.zeros(3)

    def _observe(self) -> dict[str, Array]:
        return {"a": self._place[0].copy(), "b": self._place[1:].copy()}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Array], dict[str, Any]]:
        super().reset(seed=seed)
        self._place = self.np_random.normal(size=3)
        return self._observe(), {"started": True}

    def step(self, action: Any) -> tuple[dict[str, Array], float, bool, bool, dict[str, Any]]:
        if action == 2 and self._fault == "raise":
            raise OSError("simulator gone")
        if action == 2 and self._fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        self._place = self._place + (action - 1) * self.np_random.normal(size=3)
        return self._observe(), float(self._place.sum()), bool(self.np_random.random() < 0.1), False, {}


gymnasium.register("Walk-v0", entry_point=Walk, max_episode_steps=7)
gymnasium.register("WalkRaises-v0", entry_point=Walk, kwargs={"fault": "raise"})
gymnasium.register("WalkDies-v0", entry_point=Walk, kwargs={"fault": "kill"})

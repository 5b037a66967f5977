"""The conformance test finds each kind of fault, and none in our own environments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from apexrl.config import EnvConfig
from apexrl.env_types import EnvSpec, EnvStep
from apexrl.envs import check_env, make_vec
from apexrl.envs.problems import CatchEnv


@pytest.mark.parametrize(
    ("env_id", "num_lanes", "num_steps"),
    [
        ("apex/catch", 2, 100),
        ("apex/scripted", 3, 100),
        ("gymnasium/CartPole-v1", 2, 150),
        ("gymnasium/Pendulum-v1", 2, 410),
        ("gymnasium/InvertedPendulum-v5", 2, 60),
        ("minatar/breakout", 2, 150),
        ("minatar/seaquest", 2, 150),
        ("atari/breakout", 1, 60),
    ],
)
def test_own_environments_conform(env_id: str, num_lanes: int, num_steps: int) -> None:
    config = EnvConfig(id=env_id, max_episode_frames=100)
    assert check_env(lambda n: make_vec(config, n), num_lanes=num_lanes, num_steps=num_steps) == []


class Faulty(CatchEnv):
    """Catch with a fault in the step."""

    def __init__(self, num_lanes: int, change: Callable[[EnvStep, np.ndarray], EnvStep]) -> None:
        super().__init__(num_lanes)
        self._change = change
        self._over = np.zeros(num_lanes, bool)

    def step(self, actions: np.ndarray) -> EnvStep:
        step = super().step(actions)
        over, self._over = self._over, step.terminated
        return self._change(step, over)


def life_lost_at_the_end(step: EnvStep, over: np.ndarray) -> EnvStep:
    return step._replace(life_lost=step.terminated.copy())


def reward_after_the_end(step: EnvStep, over: np.ndarray) -> EnvStep:
    return step._replace(reward=np.where(over, 0.5, step.reward).astype(np.float32))


def flag_after_the_end(step: EnvStep, over: np.ndarray) -> EnvStep:
    return step._replace(truncated=over.copy())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda step, over: step._replace(reward=step.reward.astype(np.float64)), "reward is float64 [2], must be f"),
        (lambda step, over: step._replace(observation=step.observation[:, :49]), "observation is float32 [2, 49]"),
        (lambda step, over: step._replace(reward=step.reward + np.float32("nan")), "reward is [nan, nan], must be fin"),
        (lambda step, over: tuple(step), "returned a tuple, must be an apexrl.env_types.EnvStep"),
        (lambda step, over: step._replace(observation=step.observation.tolist()), "observation is a list"),
        (life_lost_at_the_end, "life_lost and terminated are both set"),
        (reward_after_the_end, "the step after an end has reward 0.5"),
        (flag_after_the_end, "the step after an end has truncated set"),
    ],
)
def test_faulty_steps_are_found(change: Any, message: str) -> None:
    problems = check_env(lambda n: Faulty(n, change), num_steps=60)
    assert any(message in problem for problem in problems), problems


class SameStep(CatchEnv):
    """Autoreset in the ending step itself, as gymnasium's SAME_STEP."""

    def step(self, actions: np.ndarray) -> EnvStep:
        step = super().step(actions)
        if step.terminated.all():
            return step._replace(observation=super().step(actions).observation)
        return step


class RepeatedFirst(CatchEnv):
    """Shows the next episode's first observation in place of the final one, and then once more."""

    def step(self, actions: np.ndarray) -> EnvStep:
        if self._board is not None and getattr(self, "_held", None) is not None:
            held, self._held = self._held, None
            zeros = np.zeros(self.num_lanes, bool)
            return EnvStep(held, np.zeros(self.num_lanes, np.float32), zeros, zeros, zeros)
        step = super().step(actions)
        if step.terminated.all():
            self._held = super().step(actions).observation
            return step._replace(observation=self._held.copy())
        return step

    def reset(self, seed: int) -> Any:
        self._held = None
        return super().reset(seed)


class Unseeded(CatchEnv):
    def reset(self, seed: int) -> Any:
        return super().reset(int(np.random.default_rng().integers(1 << 30)))


class SeededOnce(CatchEnv):
    resets = 0

    def reset(self, seed: int) -> Any:
        self.resets += 1
        return super().reset(seed + self.resets)


class Reusing(CatchEnv):
    def _observe(self) -> Any:
        board = super()._observe()
        if not hasattr(self, "_shared"):
            self._shared = board
        np.copyto(self._shared, board)
        return self._shared


class Odd(CatchEnv):
    @property
    def spec(self) -> EnvSpec:
        return replace(super().spec, observation_shape=(5, 10, 1, 1), observation_dtype="cat")


class Raising(CatchEnv):
    def step(self, actions: np.ndarray) -> EnvStep:
        raise OSError("simulator gone")


class NoPicture(CatchEnv):
    def render(self) -> Any:
        return np.zeros((4, 4), np.uint8)


class FailingClose(CatchEnv):
    closed = False

    def close(self) -> None:
        if self.closed:
            raise OSError("already closed")
        self.closed = True


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (SameStep, "the action of the step after an episode's end changed the"),
        (RepeatedFirst, "must return the final observation"),
        (lambda n: Unseeded(64 * n), "num_lanes is 128, asked for 2"),
        (Unseeded, "seed"),
        (SeededOnce, "equal seeds"),
        (Reusing, "return a new array each time"),
        (Odd, "spec.observation_shape is (5, 10, 1, 1)"),
        (Odd, "spec.observation_dtype is 'cat'"),
        (Raising, "raised OSError: simulator gone"),
        (NoPicture, "render: returned uint8 [4, 4]"),
        (FailingClose, "close, called twice, raised OSError"),
        (lambda n: 1 / 0, "make(2) raised ZeroDivisionError"),
    ],
)
def test_faulty_environments_are_found(make: Any, message: str) -> None:
    problems = check_env(make, num_steps=60)
    assert any(message in problem for problem in problems), problems


def test_unseen_ends_are_reported() -> None:
    assert check_env(CatchEnv, num_steps=5) == [
        "no episode ended within 5 steps: ends are unchecked; raise num_steps",
    ]

"""The gymnasium wrapper: layouts, truncation, autoreset modes, spaces it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from apexrl.config import ConfigError, EnvConfig
from apexrl.envs import env_spec, make_vec
from apexrl.envs.gymnasium_env import GymnasiumEnv
from apexrl.types import DiscreteActions, EnvSpec, Padding


class Counter(gymnasium.Env[np.ndarray, np.integer[Any]]):
    """Observes the number of steps; ends after five, by termination or (with a time limit) truncation."""

    action_space = Discrete(3, start=4)

    def __init__(
        self, space: Box | None = None, actions: Any = None, ends_at: int = 5, render_mode: str | None = None
    ) -> None:
        self.observation_space = space or Box(-1e3, 1e3, (2,), np.float64)
        if actions is not None:
            self.action_space = actions
        self.render_mode = render_mode
        self._ends_at = ends_at
        self._count = 0
        self.seen: list[int] = []

    def _observe(self) -> np.ndarray:
        observation = np.zeros(self.observation_space.shape, self.observation_space.dtype)
        observation[..., 0] = self._count
        return observation

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self._count = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.seen.append(int(action))
        self._count += 1
        return self._observe(), 0.5, self._count == self._ends_at, False, {}


@pytest.fixture
def registered() -> Iterator[None]:
    ids = {
        "ApexCounter-v0": {},
        "ApexLimited-v0": {"ends_at": 99},
        "ApexImage-v0": {"space": Box(0, 255, (12, 8, 3), np.uint8)},
        "ApexPlane-v0": {"space": Box(0, 255, (12, 8), np.uint8)},
        "ApexFloatImage-v0": {"space": Box(0, 1, (12, 8, 3), np.float32)},
        "ApexChannelsFirst-v0": {"space": Box(0, 255, (3, 84, 84), np.uint8)},
        "ApexContinuous-v0": {"actions": Box(-1, 1, (1,), np.float32)},
    }
    for name, kwargs in ids.items():
        limit = 3 if name == "ApexLimited-v0" else None
        gymnasium.register(name, entry_point=Counter, kwargs=kwargs, max_episode_steps=limit)
    yield
    for name in ids:
        del gymnasium.registry[name]


def config(name: str) -> EnvConfig:
    return EnvConfig(id=f"gymnasium/{name}")


def test_cartpole_spec_and_types() -> None:
    env = make_vec(config("CartPole-v1"), 3)
    assert env.spec == EnvSpec((4,), "float32", DiscreteActions(2), 1, Padding.REPEAT_FIRST)
    assert env.reset(1).shape == (3, 4)
    step = env.step(np.zeros(3, np.int64))
    assert (step.observation.dtype, step.reward.dtype) == (np.float32, np.float32)
    assert step.reward.tolist() == [1.0, 1.0, 1.0]
    assert not step.life_lost.any()
    env.close()


@pytest.mark.usefixtures("registered")
def test_truncation_returns_the_true_final_observation_and_the_next_step_resets() -> None:
    env = make_vec(config("ApexLimited-v0"), 2)
    env.reset(1)
    steps = [env.step(np.full(2, 2)) for _ in range(5)]
    assert [step.observation[0, 0] for step in steps] == [1, 2, 3, 0, 1]
    assert [bool(step.truncated[1]) for step in steps] == [False, False, True, False, False]
    assert not any(step.terminated.any() for step in steps)
    assert [float(step.reward[0]) for step in steps] == [0.5, 0.5, 0.5, 0.0, 0.5]


@pytest.mark.usefixtures("registered")
def test_termination_returns_the_true_final_observation() -> None:
    env = make_vec(config("ApexCounter-v0"), 1)
    env.reset(1)
    steps = [env.step(np.zeros(1, np.int64)) for _ in range(6)]
    assert [bool(step.terminated[0]) for step in steps] == [False] * 4 + [True, False]
    assert [step.observation[0, 0] for step in steps] == [1, 2, 3, 4, 5, 0]


def test_actions_are_shifted_to_the_start_of_the_space() -> None:
    envs = [Counter(), Counter()]
    env = GymnasiumEnv(SyncVectorEnv([lambda: envs[0], lambda: envs[1]], autoreset_mode=AutoresetMode.NEXT_STEP))
    env.reset(1)
    env.step(np.array([0, 2]))
    assert (envs[0].seen, envs[1].seen) == ([4], [6])
    with pytest.raises(ValueError, match=r"\[0, 2\]"):
        env.step(np.array([0, 3]))


@pytest.mark.usefixtures("registered")
def test_images_become_channels_first() -> None:
    env = make_vec(config("ApexImage-v0"), 2)
    assert env.spec.observation_shape == (3, 12, 8)
    first = env.reset(1)
    assert (first.shape, first.dtype, first.flags.c_contiguous) == ((2, 3, 12, 8), np.uint8, True)
    step = env.step(np.zeros(2, np.int64))
    assert (step.observation[:, 0] == 1).all()
    assert (step.observation[:, 1:] == 0).all()
    assert env_spec(config("ApexPlane-v0")).observation_shape == (12, 8)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ApexFloatImage-v0", "observation space"),
        ("ApexChannelsFirst-v0", "observation space"),
        ("ApexContinuous-v0", "action space.*must be Discrete"),
        ("Pendulum-v1", "action space.*must be Discrete"),
        ("FrozenLake-v1", "observation space is Discrete"),
        ("CartPol-v1", "nearest: gymnasium/CartPole-v1"),
        ("CartPole-v9", "nearest: gymnasium/CartPole-v1"),
        ("no_such_module:Env-v0", "not installed"),
    ],
)
def test_what_cannot_work_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make_vec(config(name), 1)
    assert f"env.id is 'gymnasium/{name}'" in str(caught.value)


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_other_autoreset_modes_are_refused(mode: AutoresetMode) -> None:
    with pytest.raises(ConfigError, match=r"autoreset_mode.*must be NEXT_STEP"):
        GymnasiumEnv(SyncVectorEnv([Counter], autoreset_mode=mode))


@pytest.mark.parametrize(("field", "value"), [("sticky_actions", 0.25), ("full_action_space", True)])
def test_options_without_meaning_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"env.{field} is {value}"):
        make_vec(EnvConfig(id="gymnasium/CartPole-v1", **{field: value}), 1)


def test_equal_seeds_play_alike_and_lanes_differ() -> None:
    env = make_vec(config("CartPole-v1"), 2)
    first = env.reset(3)
    np.testing.assert_array_equal(first, env.reset(3))
    assert (first[0] != first[1]).all()
    assert (first != env.reset(4)).all()


def test_render_falls_back_to_the_observation() -> None:
    env = make_vec(config("CartPole-v1"), 1, record=False)
    env.reset(1)
    drawn = env.render()
    assert (drawn.ndim, drawn.shape[2], drawn.dtype) == (3, 3, np.uint8)
    assert len(np.unique(drawn)) > 1

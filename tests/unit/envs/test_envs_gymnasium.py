"""The gymnasium wrapper: layouts, truncation, autoreset modes, spaces it refuses."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Text, Tuple
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from apexrl.config import ConfigError, EnvConfig
from apexrl.env_types import ContinuousActions, DiscreteActions, EnvSpec
from apexrl.envs import env_spec, make_vec
from apexrl.envs.gymnasium_env import GymnasiumEnv
from apexrl.types import Padding


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
        "ApexUnbounded-v0": {"actions": Box(-np.inf, np.inf, (1,), np.float32)},
        "ApexHalfBounded-v0": {"actions": Box(np.float32([-1, 0]), np.float32([1, np.inf]), dtype=np.float32)},
        "ApexIntegers-v0": {"actions": Box(0, 3, (1,), np.int64)},
        "ApexManyDiscrete-v0": {"actions": MultiDiscrete([2, 3])},
        "ApexText-v0": {"space": Dict({"says": Text(4), "sees": Box(0, 1, (2,))})},
        "ApexEmpty-v0": {"space": Box(0, 1, (0,))},
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


class Recorder(gymnasium.Env[Any, np.ndarray]):
    """Keeps the actions it gets; truncated and terminated at once after three steps."""

    action_space = Box(np.float32([-2, 10]), np.float32([2, 20]))
    observation_space = Tuple((Box(-9, 9, (1,)), Dict({"z": Box(-9, 9, (2,)), "a": Box(-9, 9, ())})))

    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def _observe(self) -> Any:
        count = np.float32(len(self.seen))
        return np.float32([count]), {"z": np.float32([5, 6]), "a": np.float32(-count)}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.seen = []
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.seen.append(action.tolist())
        return self._observe(), 1.0, len(self.seen) == 3, len(self.seen) == 3, {}


def test_continuous_actions_are_mapped_and_nested_observations_flattened() -> None:
    inner = Recorder()
    env = GymnasiumEnv(SyncVectorEnv([lambda: inner], autoreset_mode=AutoresetMode.NEXT_STEP))
    assert env.spec == EnvSpec((4,), "float32", ContinuousActions(2), 1, Padding.REPEAT_FIRST)
    assert env.reset(1).tolist() == [[0, 0, 5, 6]]
    ends = []
    for action in ([-1, 0], [0.5, 1], [3, -7]):
        step = env.step(np.float32([action]))
        ends.append((step.terminated.tolist(), step.truncated.tolist()))
    assert inner.seen == [[-2, 15], [1, 20], [2, 10]]
    assert ends == [([False], [False])] * 2 + [([True], [True])]
    assert step.observation.tolist() == [[3, -3, 5, 6]]
    after = env.step(np.float32([[1, 1]]))
    assert (after.observation.tolist(), after.reward.tolist()) == ([[0, 0, 5, 6]], [0.0])
    with pytest.raises(ValueError, match=r"must be \(1, 2\) of floating-point numbers"):
        env.step(np.zeros(1, np.int64))


def test_pendulum_and_mujoco_have_continuous_actions() -> None:
    assert env_spec(config("Pendulum-v1")) == EnvSpec((3,), "float32", ContinuousActions(1), 1, Padding.REPEAT_FIRST)
    assert env_spec(config("HalfCheetah-v5")).actions == ContinuousActions(6)
    env = make_vec(config("Pendulum-v1"), 1)
    inner = env._vector.envs[0].unwrapped  # type: ignore[attr-defined]
    env.reset(1)
    for action, torque in ((1.0, 2.0), (-0.25, -0.5), (9.0, 2.0)):
        env.step(np.full((1, 1), action, np.float32))
        assert inner.last_u == torque
    env.close()


def test_a_missing_package_of_an_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise gymnasium.error.DependencyNotInstalled("MuJoCo is not installed")

    monkeypatch.setattr(gymnasium, "make", fail)
    with pytest.raises(ConfigError, match=r"not installed.*pip install 'apex-rl\[mujoco\]'"):
        make_vec(config("Hopper-v5"), 1)


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
        ("ApexUnbounded-v0", r"action space is Box\(-inf, inf, .*bounds must all be finite"),
        ("ApexHalfBounded-v0", "bounds must all be finite"),
        ("ApexIntegers-v0", "must be a Box of at least one floating-point number"),
        ("ApexManyDiscrete-v0", "action space is MultiDiscrete.*must be Discrete or a Box"),
        ("ApexText-v0", "observation space is Dict"),
        ("ApexEmpty-v0", "holds no numbers"),
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


@pytest.mark.usefixtures("registered")
def test_what_cannot_be_drawn_shows_the_observation(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver(self: Counter) -> None:
        raise AttributeError("no driver")

    monkeypatch.setattr(Counter, "render", no_driver)
    monkeypatch.setattr(Counter, "metadata", {"render_modes": ["rgb_array"]})
    env = make_vec(config("ApexCounter-v0"), 1, record=True)
    env.reset(1)
    with pytest.warns(RuntimeWarning, match="cannot be drawn here.*no driver"):
        drawn = env.render()
    assert (drawn.ndim, drawn.shape[2]) == (3, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert env.render().shape == drawn.shape


def test_render_falls_back_to_the_observation() -> None:
    env = make_vec(config("CartPole-v1"), 1, record=False)
    env.reset(1)
    drawn = env.render()
    assert (drawn.ndim, drawn.shape[2], drawn.dtype) == (3, 3, np.uint8)
    assert len(np.unique(drawn)) > 1

"""The control suite: layout, seeding, time limits and terminations, pictures."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest

from apexrl.config import ConfigError, EnvConfig
from apexrl.env_types import ContinuousActions, EnvSpec
from apexrl.envs import check_env, env_names, env_spec, make_vec
from apexrl.envs.dm_control_env import ControlTask
from apexrl.types import Padding

WALKER = EnvConfig(id="dm_control/walker-walk")


def test_observations_are_concatenated_in_the_tasks_own_order() -> None:
    task = ControlTask("walker", "walk")
    assert list(task.observation_space) == ["orientations", "height", "velocity"]
    first, _ = task.reset(seed=5)
    env = make_vec(WALKER, 2)
    assert env.spec == EnvSpec((24,), "float32", ContinuousActions(6), 1, Padding.REPEAT_FIRST)
    env.reset(1)
    step = env.step(np.zeros((2, 6), np.float32))
    assert (step.observation.shape, step.observation.dtype, step.reward.dtype) == ((2, 24), np.float32, np.float32)
    assert np.shape(first["height"]) == ()
    env.close()


def test_actions_reach_the_tasks_own_bounds() -> None:
    """The task's bounds are [-1, 1] here, so the task itself is the reference."""
    env, task = make_vec(EnvConfig(id="dm_control/reacher-easy"), 1), ControlTask("reacher", "easy")
    random = np.random.default_rng(0)
    env.reset(3)
    task.reset(seed=int(np.random.SeedSequence(3).generate_state(1)[0] & 0x7FFF_FFFF))
    for _ in range(5):
        action = random.uniform(-1.5, 1.5, (1, 2)).astype(np.float32)
        ours = env.step(action)
        parts, reward, *_ = task.step(np.clip(action[0], -1, 1))
        np.testing.assert_array_equal(ours.observation[0], np.float32(np.concatenate(list(parts.values()))))
        assert ours.reward[0] == np.float32(reward)
    env.close()


def test_the_time_limit_truncates() -> None:
    env = make_vec(EnvConfig(id="dm_control/cartpole-balance"), 1)
    env.reset(1)
    steps = [env.step(np.zeros((1, 1), np.float32)) for _ in range(1001)]
    assert [i for i, step in enumerate(steps) if step.truncated.any()] == [999]
    assert not any(step.terminated.any() for step in steps)
    assert steps[1000].reward[0] == 0.0
    assert (steps[999].observation != steps[1000].observation).any()
    env.close()


def test_an_end_with_discount_0_terminates(monkeypatch: pytest.MonkeyPatch) -> None:
    task = ControlTask("cartpole", "balance")
    task.reset(seed=1)
    ends = iter([None, 0.0, None, 1.0])
    monkeypatch.setattr(task._env.task, "get_termination", lambda physics: next(ends))
    action = np.zeros(1)
    assert task.step(action)[2:4] == (False, False)
    assert task.step(action)[2:4] == (True, False)
    task.reset()
    assert task.step(action)[2:4] == (False, False)
    assert task.step(action)[2:4] == (False, True)


@pytest.mark.parametrize("name", ["lqr-lqr_2_1", "point_mass-hard"])
def test_tasks_with_random_models_are_the_same_in_every_copy(name: str) -> None:
    config = EnvConfig(id=f"dm_control/{name}")
    problems = check_env(lambda lanes: make_vec(config, lanes), num_steps=30)
    assert problems == ["no episode ended within 30 steps: ends are unchecked; raise num_steps"]


def test_names_and_unknown_ones() -> None:
    assert {"cheetah-run", "ball_in_cup-catch", "humanoid-run", "cartpole-swingup_sparse"} < set(
        env_names("dm_control")
    )
    with pytest.raises(ConfigError, match="nearest: dm_control/cheetah-run"):
        env_spec(EnvConfig(id="dm_control/cheeta-run"))
    with pytest.raises(ConfigError, match=r"env\.sticky_actions"):
        env_spec(EnvConfig(id="dm_control/cheetah-run", sticky_actions=0.25))


DRAW = """
import warnings
import numpy as np
from apexrl.config import EnvConfig
from apexrl.envs import make_vec
env = make_vec(EnvConfig(id="dm_control/cartpole-swingup"), 1, record=True)
env.reset(1)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    first, second = env.render(), env.render()
assert first.dtype == np.uint8 and first.ndim == 3 and first.shape[2] == 3
print(len([w for w in caught if "cannot be drawn here" in str(w.message)]), len(np.unique(first)) > 1)
"""


def test_without_a_renderer_pictures_show_the_observation() -> None:
    environment = {**os.environ, "MUJOCO_GL": "disable", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", DRAW], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "True"]


def test_pictures_come_from_another_process() -> None:
    """This one must not load a graphics driver: torch may not survive that."""
    env = make_vec(EnvConfig(id="dm_control/cartpole-swingup"), 1, record=True)
    try:
        env.reset(1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            first = env.render()
        for _ in range(5):
            env.step(np.ones((1, 1), np.float32))
        if caught:
            pytest.skip(f"no graphics driver: {caught[0].message}")
        assert (first.shape, first.dtype) == ((240, 320, 3), np.uint8)
        assert (env.render() != first).any()
    finally:
        env.close()
    assert not {"mujoco.egl", "mujoco.osmesa", "mujoco.glfw"} & set(sys.modules)

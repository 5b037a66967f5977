"""The MinAtar wrapper: layout, actions, autoreset, time limit, the random player's return."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from minatar import Environment

from apexrl.config import ConfigError, EnvConfig
from apexrl.env_types import DiscreteActions, EnvSpec
from apexrl.envs import env_names, env_spec, make_vec
from apexrl.envs.lanes import lane_seeds
from apexrl.types import Padding

BREAKOUT = EnvConfig(id="minatar/breakout", sticky_actions=0.1)


def test_spec_and_action_sets() -> None:
    assert env_spec(BREAKOUT) == EnvSpec((4, 10, 10), "uint8", DiscreteActions(3), 1, Padding.ZEROS)
    assert env_spec(EnvConfig(id="minatar/breakout", full_action_space=True)).num_actions == 6
    assert {name: env_spec(EnvConfig(id=f"minatar/{name}")).num_actions for name in env_names("minatar")} == {
        "asterix": 5,
        "breakout": 3,
        "freeway": 3,
        "seaquest": 6,
        "space_invaders": 4,
    }


def test_lanes_equal_single_games() -> None:
    num_lanes, steps = 2, 300
    env = make_vec(BREAKOUT, num_lanes)
    observations = env.reset(7)
    games = [Environment("breakout", sticky_action_prob=0.1) for _ in range(num_lanes)]
    for game, seed in zip(games, lane_seeds(7, num_lanes), strict=True):
        game.seed(int(seed))
        game.reset()
    actions = np.random.default_rng(0).integers(0, 3, (steps, num_lanes))
    ended, resets = [False] * num_lanes, 0
    for action in actions:
        for lane, game in enumerate(games):
            np.testing.assert_array_equal(observations[lane], game.state().transpose(2, 0, 1))
        step = env.step(action)
        observations = step.observation
        for lane, game in enumerate(games):
            if ended[lane]:
                game.reset()
                resets += 1
                reward, ended[lane] = 0, False
            else:
                reward, ended[lane] = game.act([0, 1, 3][action[lane]])
            assert (step.reward[lane], step.terminated[lane], step.truncated[lane]) == (reward, ended[lane], False)
    assert resets > 10


def test_frames_hold_zeros_and_ones() -> None:
    frames = make_vec(BREAKOUT, 2).reset(1)
    assert frames.dtype == np.uint8
    assert np.unique(frames).tolist() == [0, 1]


def test_random_player_in_breakout_returns_about_0_4() -> None:
    env = make_vec(BREAKOUT, 32)
    env.reset(1)
    random = np.random.default_rng(0)
    total, episodes = 0.0, 0
    for _ in range(2500):
        step = env.step(random.integers(0, 3, 32))
        total += float(step.reward.sum())
        episodes += int(step.terminated.sum())
    assert episodes > 3000
    assert total / episodes == pytest.approx(0.39, abs=0.06)


def test_episodes_are_truncated_at_the_limit_but_not_so_early_in_evaluation() -> None:
    config = EnvConfig(id="minatar/freeway", max_episode_frames=20)
    env = make_vec(config, 2)
    first = env.reset(1)
    steps = [env.step(np.full(2, 1)) for _ in range(42)]
    assert [t for t, step in enumerate(steps) if step.truncated.all()] == [19, 40]
    assert not any(step.terminated.any() for step in steps)
    assert (steps[19].observation != first).any()
    assert not steps[20].reward.any()
    evaluation = make_vec(config, 1, evaluation=True)
    evaluation.reset(1)
    assert not any(evaluation.step(np.zeros(1, np.int64)).truncated.any() for _ in range(100))


@pytest.mark.parametrize("name", ["breakout", "seaquest", "space_invaders", "asterix", "freeway"])
def test_a_second_reset_repeats_everything(name: str) -> None:
    env = make_vec(EnvConfig(id=f"minatar/{name}", sticky_actions=0.1), 2)
    actions = np.random.default_rng(0).integers(0, env.spec.num_actions, (150, 2))
    runs = []
    for _ in range(2):
        runs.append([env.reset(4), *(env.step(action).observation for action in actions)])
    np.testing.assert_array_equal(np.stack(runs[0]), np.stack(runs[1]))


def test_unknown_game_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'minatar/Breakout-v1'.*nearest: minatar/breakout"):
        make_vec(EnvConfig(id="minatar/Breakout-v1"), 1)


def test_importing_leaves_the_root_logger_alone() -> None:
    code = (
        "import sys; sys.modules['seaborn'] = None\n"
        "import logging, apexrl.envs.minatar\n"
        "assert not logging.getLogger().handlers, logging.getLogger().handlers"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")

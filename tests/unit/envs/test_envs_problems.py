"""Catch and the scripted environment."""

from __future__ import annotations

import numpy as np
import pytest

from apexrl.config import ConfigError, EnvConfig
from apexrl.env_types import DiscreteActions, EnvSpec
from apexrl.envs import env_spec, make_vec
from apexrl.envs.problems import (
    CatchEnv,
    ScriptedEnv,
    ScriptedEpisode,
    decode_observation,
    default_scripts,
    encode_observation,
    scripted_reward,
)

CATCH = EnvConfig(id="apex/catch")


def board(observation: np.ndarray) -> np.ndarray:
    return observation.reshape(10, 5)


def test_catch_starts_with_the_ball_on_top_and_the_paddle_in_the_middle() -> None:
    env = make_vec(CATCH, 64)
    boards = env.reset(1).reshape(64, 10, 5)
    assert env.spec == EnvSpec((50,), "float32", DiscreteActions(3))
    assert (boards[:, 0].sum(axis=1) == 1).all()
    assert (boards[:, 9, 2] == 1).all()
    assert (boards.sum(axis=(1, 2)) == 2).all()
    assert set(boards[:, 0].argmax(axis=1).tolist()) == {0, 1, 2, 3, 4}


def test_catch_paddle_moves_and_stops_at_the_walls() -> None:
    env = CatchEnv(1)
    env.reset(1)
    columns = [int(board(env.step(np.array([a])).observation[0])[9].argmax()) for a in (0, 0, 0, 1, 2, 2, 2, 2)]
    assert columns == [1, 0, 0, 0, 1, 2, 3, 4]


def test_catch_ends_after_nine_steps_with_plus_or_minus_one() -> None:
    env = CatchEnv(32)
    observations = env.reset(2)
    columns = observations.reshape(32, 10, 5)[:, 0].argmax(axis=1)
    for t in range(9):
        step = env.step(np.ones(32, np.int64))
        assert step.terminated.all() == (t == 8)
        assert (step.reward == 0).all() or t == 8
    np.testing.assert_array_equal(step.reward, np.where(columns == 2, 1.0, -1.0))
    final = step.observation.reshape(32, 10, 5)
    assert (final[:, 9, 2] == 1).all()
    assert (final[np.arange(32), 9, columns] == 1).all()
    after = env.step(np.zeros(32, np.int64))
    assert not after.reward.any()
    assert not after.terminated.any()
    assert (after.observation.reshape(32, 10, 5)[:, 9, 2] == 1).all()  # the action of the reset step is ignored


def test_catch_best_player_returns_one_and_a_random_one_about_minus_0_6() -> None:
    env = CatchEnv(64)
    random = np.random.default_rng(0)
    observations = env.reset(3)
    best, chance = [], []
    for t in range(400):
        boards = observations.reshape(64, 10, 5)
        ball = boards[:, :9].sum(axis=1).argmax(axis=1)
        paddle = boards[:, 9].argmax(axis=1)
        chosen = np.sign(ball - paddle) + 1 if t < 200 else random.integers(0, 3, 64)
        step = env.step(chosen)
        observations = step.observation
        (best if t < 200 else chance).extend(step.reward[step.terminated].tolist())
    assert set(best) == {1.0}
    assert np.mean(chance) == pytest.approx(-0.6, abs=0.08)


def test_scripted_observations_tell_lane_episode_and_step() -> None:
    env = ScriptedEnv([[ScriptedEpisode(2), ScriptedEpisode(1, truncated=True)], [ScriptedEpisode(3)]])
    places = [[decode_observation(frame) for frame in env.reset(1)]]
    steps = [env.step(np.zeros(2, np.int64)) for _ in range(7)]
    places += [[decode_observation(frame) for frame in step.observation] for step in steps]
    lane0 = [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0), (0, 1, 1), (0, 2, 0), (0, 2, 1), (0, 2, 2)]
    lane1 = [(1, 0, 0), (1, 0, 1), (1, 0, 2), (1, 0, 3), (1, 1, 0), (1, 1, 1), (1, 1, 2), (1, 1, 3)]
    assert [p[0] for p in places] == lane0
    assert [p[1] for p in places] == lane1
    assert [bool(s.terminated[0]) for s in steps] == [False, True, False, False, False, False, True]
    assert [bool(s.truncated[0]) for s in steps] == [False, False, False, True, False, False, False]
    expected = [0.0 if step == 0 else scripted_reward(0, episode, step) for _, episode, step in lane0[1:]]
    assert [float(s.reward[0]) for s in steps] == expected


def test_scripted_life_losses() -> None:
    scripts = [[ScriptedEpisode(4, life_losses=(1, 3))]]
    env = ScriptedEnv(scripts)
    env.reset(1)
    assert [bool(env.step(np.zeros(1, np.int64)).life_lost[0]) for _ in range(6)] == [1, 0, 1, 0, 0, 1]
    quiet = ScriptedEnv(scripts, mark_life_losses=False)
    quiet.reset(1)
    assert not any(quiet.step(np.zeros(1, np.int64)).life_lost.any() for _ in range(6))


def test_scripted_by_id_follows_life_loss_ends() -> None:
    for options, marked in (({}, True), ({"evaluation": True}, False)):
        env = make_vec(EnvConfig(id="apex/scripted"), 3, **options)
        env.reset(1)
        assert any(env.step(np.zeros(3, np.int64)).life_lost.any() for _ in range(60)) == marked
    assert env_spec(EnvConfig(id="apex/scripted")).observation_shape == (6, 6)


def test_scripted_frames_are_never_zero_and_padding_does_not_decode() -> None:
    for place in ((0, 0, 0), (3, 300, 700), (254, 65_535, 65_535)):
        frame = encode_observation(*place, (2, 5, 5))
        assert frame.any()
        assert decode_observation(frame) == place
    with pytest.raises(ValueError, match="not a scripted frame"):
        decode_observation(np.zeros((6, 6), np.uint8))
    mixed = encode_observation(0, 1, 2, (6, 6))
    mixed[3:] = encode_observation(0, 1, 3, (6, 6))[3:]
    with pytest.raises(ValueError, match="not a scripted frame"):
        decode_observation(mixed)


def test_default_scripts_cover_both_ends_and_differ_between_lanes() -> None:
    scripts = default_scripts(6)
    assert len({tuple(script) for script in scripts}) == 6
    assert {episode.truncated for episode in scripts[0]} == {True, False}
    assert any(episode.life_losses for episode in scripts[0])


@pytest.mark.parametrize("bad", [{"length": 0}, {"length": 3, "life_losses": (3,)}, {"length": 3, "life_losses": (0,)}])
def test_bad_episodes_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        ScriptedEpisode(**bad)  # type: ignore[arg-type]


def test_unknown_problem_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="nearest: apex/catch"):
        make_vec(EnvConfig(id="apex/cach"), 1)

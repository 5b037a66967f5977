"""The Atari wrapper against ale-py itself: stacking, limits, lives, rewards, actions, seeds, pictures."""

from __future__ import annotations

import inspect
import os
from typing import Any

import numpy as np
import pytest
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode

from apexrl.config import ConfigError, EnvConfig
from apexrl.env_types import DiscreteActions, EnvSpec, EnvStep
from apexrl.envs import atari, env_names, env_spec, make_vec
from apexrl.envs.lanes import lane_seeds
from apexrl.types import Padding


def random_actions(num_steps: int, num_lanes: int, num_actions: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, num_actions, (num_steps, num_lanes))


def play(config: EnvConfig, actions: np.ndarray, seed: int = 1, **options: Any) -> tuple[np.ndarray, list[EnvStep]]:
    env = make_vec(config, actions.shape[1], **options)
    try:
        return env.reset(seed), [env.step(a) for a in actions]
    finally:
        env.close()


def bare(game: str, num_lanes: int, **options: Any) -> AtariVectorEnv:
    return AtariVectorEnv(game, num_lanes, num_threads=1, reward_clipping=False, **options)


def test_spec() -> None:
    assert env_spec(EnvConfig(id="atari/pong")) == EnvSpec((84, 84), "uint8", DiscreteActions(6), 4, Padding.ZEROS)
    assert env_spec(EnvConfig(id="atari/pong", full_action_space=True, action_repeat=2)).num_actions == 18


def test_zero_padded_stack_of_rows_equals_ale_stack() -> None:
    config = EnvConfig(id="atari/breakout", max_episode_frames=120)
    actions = random_actions(100, 2, 4)
    first, steps = play(config, actions)
    reference = bare("breakout", 2, stack_num=4, max_num_frames_per_episode=120)
    stack, _ = reference.reset(seed=lane_seeds(1, 2))
    frames, ages, ends = [first], np.zeros(2, int), 0
    np.testing.assert_array_equal(stack[:, :3], 0)
    np.testing.assert_array_equal(stack[:, 3], first)
    ended = np.zeros(2, bool)
    for step, action in zip(steps, actions, strict=True):
        stack, _, terminated, truncated, _ = reference.step(action)
        frames.append(step.observation)
        ages = np.where(ended, 0, ages + 1)
        for lane in range(2):
            for back in range(4):
                expected = frames[-1 - back][lane] if back <= ages[lane] else 0
                np.testing.assert_array_equal(stack[lane, 3 - back], expected)
        ended = terminated | truncated
        ends += int(ended.sum())
    assert ends >= 4


def test_truncated_exactly_at_the_frame_limit_and_reset_by_the_next_step() -> None:
    config = EnvConfig(id="atari/pong", max_episode_frames=100, noop_max=0, fire_reset=False)
    first, steps = play(config, np.zeros((52, 2), np.int64))
    truncations = [t for t, step in enumerate(steps) if step.truncated.any()]
    assert truncations == [24, 50]  # 25 steps of 4 frames, one step that only resets, 25 steps
    assert all(step.truncated.all() for step in (steps[24], steps[50]))
    assert not any(step.terminated.any() for step in steps)
    assert (steps[24].observation != first).any()  # the true final frame
    np.testing.assert_array_equal(steps[25].observation, first)  # no no-ops: every episode starts alike
    assert not steps[25].reward.any()


def test_evaluation_plays_on_past_the_training_limit_and_marks_no_life_losses() -> None:
    config = EnvConfig(id="atari/breakout", max_episode_frames=100)
    actions = random_actions(600, 1, 4)
    _, steps = play(config, actions, evaluation=True)
    ends = [t for t, step in enumerate(steps) if (step.terminated | step.truncated)[0]]
    assert ends[0] > 25
    assert not any(step.truncated.any() or step.life_lost.any() for step in steps)
    assert atari.EVALUATION_EPISODE_FRAMES == 108_000


def test_life_losses_equal_ale_life_loss_info_and_no_reset_follows() -> None:
    actions = random_actions(420, 2, 4)
    _, steps = play(EnvConfig(id="atari/breakout"), actions)
    _, unmarked = play(EnvConfig(id="atari/breakout", life_loss_ends=False), actions)
    reference = bare("breakout", 2, stack_num=1, life_loss_info=True)
    reference.reset(seed=lane_seeds(1, 2))
    since_start, ends = np.zeros(2, int), 0
    for step, plain, action in zip(steps, unmarked, actions, strict=True):
        _, _, terminated, _, info = reference.step(action)
        np.testing.assert_array_equal(step.terminated | step.life_lost, terminated)
        np.testing.assert_array_equal(step.life_lost, terminated & (info["lives"] > 0))
        np.testing.assert_array_equal(step.observation, plain.observation)
        np.testing.assert_array_equal(step.terminated, plain.terminated)
        assert not plain.life_lost.any()
        since_start += step.life_lost
        if step.terminated.any():
            assert (since_start[step.terminated] == 4).all()  # five lives, the last one ends the game
            since_start[step.terminated] = 0
            ends += 1
    assert ends >= 2


class ScriptedLives:
    """Stands in for AtariVectorEnv: one lane that plays given (lives, terminated, truncated)."""

    def __init__(self, script: list[tuple[int, bool, bool]]) -> None:
        self._script = iter(script)

    def step(self, actions: np.ndarray) -> tuple[Any, ...]:
        lives, terminated, truncated = next(self._script)
        frame = np.zeros((1, 1, 84, 84), np.uint8)
        return frame, np.zeros(1, np.int32), np.array([terminated]), np.array([truncated]), {"lives": np.array([lives])}


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        # Bonus lives, then a truncation: the reset lowers the count from 6 to 3, which is no lost life.
        ([(6, False, True), (3, False, False), (2, False, False)], [False, False, True]),
        # Games whose count reaches 0 before the game is over (Atlantis): its end is the termination that follows.
        ([(1, False, False), (0, False, False), (0, True, False)], [True, False, False]),
        # Game over with lives left is an end, whatever the count does.
        ([(2, True, False), (3, False, False)], [False, False]),
        ([(2, False, True), (3, False, False)], [True, False]),
    ],
)
def test_lives_bookkeeping(script: list[tuple[int, bool, bool]], expected: list[bool]) -> None:
    env = atari.AtariEnv("pong", EnvConfig(id="atari/pong"), 1)
    env.reset(1)
    env._lives = np.array([3])
    env._vector = ScriptedLives(script)  # type: ignore[assignment]
    assert [bool(env.step(np.zeros(1, np.int64)).life_lost[0]) for _ in script] == expected


def test_every_option_of_ale_is_explicit(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []

    class Recorder(AtariVectorEnv):
        def __init__(self, game: str, num_envs: int, **options: Any) -> None:
            made.append(options)
            super().__init__(game, num_envs, **options)

    monkeypatch.setattr(atari, "AtariVectorEnv", Recorder)
    config = EnvConfig(
        id="atari/pong", sticky_actions=0.25, noop_max=7, fire_reset=False, action_repeat=3, max_episode_frames=999
    )
    make_vec(config, 2, num_threads=8).close()
    make_vec(config, 2, evaluation=True).close()
    options = made[0]
    assert set(options) == set(inspect.signature(AtariVectorEnv.__init__).parameters) - {"self", "game", "num_envs"}
    expected = {
        "reward_clipping": False,
        "episodic_life": False,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
        "stack_num": 1,
        "repeat_action_probability": 0.25,
        "noop_max": 7,
        "use_fire_reset": False,
        "frameskip": 3,
        "max_num_frames_per_episode": 999,
        "num_threads": 2,
    }
    assert {name: options[name] for name in expected} == expected
    assert made[1]["max_num_frames_per_episode"] == 108_000


def test_rewards_are_not_clipped() -> None:
    _, steps = play(EnvConfig(id="atari/ms_pacman", life_loss_ends=False), random_actions(150, 1, 9))
    rewards = np.concatenate([step.reward for step in steps])
    assert rewards.dtype == np.float32
    assert rewards.max() == 10.0


def test_actions_mean_the_same_in_both_action_sets() -> None:
    minimal = atari.AtariEnv("pong", EnvConfig(id="atari/pong"), 1)
    full = atari.AtariEnv("pong", EnvConfig(id="atari/pong", full_action_space=True), 1)
    assert minimal.actions == ["NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE"]
    assert len(full.actions) == 18
    numbers = np.array([full.actions.index(name) for name in minimal.actions])
    np.testing.assert_array_equal(minimal.reset(3), full.reset(3))
    for action in random_actions(150, 1, 6):
        np.testing.assert_array_equal(minimal.step(action).observation, full.step(numbers[action]).observation)


@pytest.mark.parametrize("actions", [np.array([0, 6]), np.array([-1, 0]), np.zeros(3, np.int64), np.zeros(2)])
def test_bad_actions_are_refused_before_the_emulator_sees_them(actions: np.ndarray) -> None:
    env = make_vec(EnvConfig(id="atari/pong"), 2)
    env.reset(1)
    with pytest.raises(ValueError, match="actions"):
        env.step(actions)


def test_equal_seeds_play_alike_and_lanes_differ() -> None:
    config = EnvConfig(id="atari/breakout", sticky_actions=0.25)
    actions = np.repeat(random_actions(120, 1, 4), 2, axis=1)
    first, steps = play(config, actions, seed=5)
    again, repeated = play(config, actions, seed=5, num_threads=2)
    np.testing.assert_array_equal(first, again)
    for step, other in zip(steps, repeated, strict=True):
        np.testing.assert_array_equal(step.observation, other.observation)
    assert any((step.observation[0] != step.observation[1]).any() for step in steps)
    _, others = play(config, actions, seed=6)
    assert any((a.observation != b.observation).any() for a, b in zip(steps, others, strict=True))


def test_every_episode_draws_its_own_number_of_noops_and_the_limit_does_not_count_them() -> None:
    env = atari.AtariEnv("pong", EnvConfig(id="atari/pong", max_episode_frames=40, noop_max=30), 1)
    assert env._vector is not None
    frame_numbers: list[int] = []
    step_vector = env._vector.step

    def spy(actions: np.ndarray) -> Any:
        result = step_vector(actions)
        frame_numbers.append(int(result[4]["episode_frame_number"][0]))
        return result

    env._vector.step = spy
    env.reset(1)
    steps = [env.step(np.zeros(1, np.int64)) for _ in range(110)]
    ends = [t for t, step in enumerate(steps) if step.truncated[0]]
    assert ends == list(range(9, 110, 11))  # always 10 steps of 4 frames
    noops = [frame_numbers[t + 1] for t in ends[:-1]]
    assert len(set(noops)) > 3
    assert 0 <= min(noops) <= max(noops) < 30


def test_observations_are_not_reused() -> None:
    env = make_vec(EnvConfig(id="atari/breakout"), 2, num_threads=2)
    kept = [env.reset(1)]
    copies = [kept[0].copy()]
    for action in random_actions(60, 2, 4):
        kept.append(env.step(action).observation)
        copies.append(kept[-1].copy())
    np.testing.assert_array_equal(np.stack(kept), np.stack(copies))


def test_recording_follows_lane_0_through_resets() -> None:
    config = EnvConfig(id="atari/breakout", max_episode_frames=160, sticky_actions=0.25)
    env = atari.AtariEnv("breakout", config, 2, record=True)
    colour = env._colour
    assert colour is not None
    seen: list[tuple[float, bool]] = []
    step_colour = colour.step

    def spy(actions: np.ndarray) -> Any:
        result = step_colour(actions)
        seen.append((float(result[1][0]), bool(result[3][0])))
        return result

    colour.step = spy
    env.reset(9)
    steps = [env.step(action) for action in random_actions(150, 2, 4)]
    assert seen == [(float(step.reward[0]), bool(step.truncated[0])) for step in steps]
    assert any(truncated for _, truncated in seen)
    drawn = env.render()
    assert drawn.shape == (210, 160, 3)
    assert drawn.dtype == np.uint8
    assert (drawn[..., 0] != drawn[..., 2]).any()  # in colour


def test_render_without_recording_shows_the_frame_in_grey() -> None:
    env = make_vec(EnvConfig(id="atari/breakout"), 1)
    frame = env.reset(1)[0]
    drawn = env.render()
    assert drawn.shape == (168, 168, 3)
    np.testing.assert_array_equal(drawn[::2, ::2, 1], frame)


def test_close_ends_the_emulators_threads() -> None:
    def threads() -> int:
        return len(os.listdir("/proc/self/task"))

    env = make_vec(EnvConfig(id="atari/pong"), 4, num_threads=3)
    opened = threads()
    env.close()
    env.close()
    assert threads() < opened
    with pytest.raises(RuntimeError, match="closed"):
        env.reset(1)


def test_two_player_games_are_refused_and_not_listed() -> None:
    with pytest.raises(ConfigError, match="one-player"):
        env_spec(EnvConfig(id="atari/combat"))
    assert "combat" not in env_names("atari")
    assert {"pong", "montezuma_revenge", "space_invaders"} <= set(env_names("atari"))


def test_missing_rom_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("ALE_ROMS_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match=r"'atari/pong'.*pong\.bin is missing.*pip install.*ale-py"):
        env_spec(EnvConfig(id="atari/pong"))
    (tmp_path / "pong.bin").write_bytes(b"not a ROM")
    with pytest.raises(ConfigError, match=r"missing or damaged"):
        env_spec(EnvConfig(id="atari/pong"))

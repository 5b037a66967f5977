from __future__ import annotations

import numpy as np
import pytest

from apexrl.env_types import DiscreteActions, EnvSpec, EnvStep
from apexrl.experience.rows import EpisodeRows
from apexrl.experience.stacking import FrameStacker
from apexrl.experience.windows import NStepWindows
from apexrl.types import Padding, RowKind


def answer(reward: float = 0.0, terminated: bool = False, truncated: bool = False, life_lost: bool = False) -> EnvStep:
    return EnvStep(
        np.zeros((1, 1)),
        np.array([reward], dtype=np.float32),
        np.array([terminated]),
        np.array([truncated]),
        np.array([life_lost]),
    )


def complete(rows: EpisodeRows, step: EnvStep) -> tuple[int, int, float, int]:
    columns = rows.complete(step, step.reward)
    return tuple(columns[name][0].item() for name in ("kind", "age", "reward", "continuation"))  # type: ignore[return-value]


def test_rows_of_a_terminated_and_a_truncated_episode() -> None:
    rows = EpisodeRows(1)
    assert rows.first[0]
    assert complete(rows, answer(1.0)) == (RowKind.FIRST, 0, 1.0, 1)
    assert complete(rows, answer(2.0, terminated=True)) == (RowKind.MID, 1, 2.0, 0)
    assert rows.last[0]
    assert complete(rows, answer(3.0)) == (RowKind.LAST, 2, 0.0, 0)
    assert rows.first[0]
    assert rows.ages[0] == 0
    assert complete(rows, answer(4.0, truncated=True)) == (RowKind.FIRST, 0, 4.0, 1)
    assert complete(rows, answer()) == (RowKind.LAST, 1, 0.0, 0)


def test_termination_wins_over_truncation() -> None:
    assert complete(EpisodeRows(1), answer(terminated=True, truncated=True))[3] == 0


def test_a_lost_life_changes_only_the_continuation() -> None:
    rows = EpisodeRows(1)
    assert complete(rows, answer(1.0, life_lost=True)) == (RowKind.FIRST, 0, 1.0, 0)
    assert complete(rows, answer(1.0)) == (RowKind.MID, 1, 1.0, 1)


def test_ages_saturate_at_the_end_of_their_type() -> None:
    rows = EpisodeRows(1)
    rows._ages[:] = 65534
    rows._kinds[:] = RowKind.MID
    assert [complete(rows, answer())[1] for _ in range(3)] == [65534, 65535, 65535]


def test_same_step_autoreset_is_noticed() -> None:
    rows = EpisodeRows(1)
    complete(rows, answer(terminated=True))
    with pytest.raises(ValueError, match="must be NEXT_STEP"):
        complete(rows, answer(terminated=True))


def test_flags_may_be_views_that_nobody_may_write_to() -> None:
    """Environments keep their flags as they like, e.g. as columns of one table."""
    flags = np.zeros((3, 3), np.bool_)
    flags[0, 0] = flags[1, 1] = flags[2, 2] = True
    flags.setflags(write=False)
    rows, rewards = EpisodeRows(3), np.ones(3, np.float32)
    columns = rows.complete(EnvStep(np.zeros((3, 1)), rewards, *flags.T), rewards)
    assert columns["continuation"].tolist() == [0, 1, 0]
    assert rows.last.tolist() == [True, True, False]
    assert rows.ages.tolist() == [1, 1, 1]


def test_answers_of_another_number_of_lanes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be of 2 lanes"):
        EpisodeRows(2).complete(answer(), np.zeros(2, np.float32))
    flags = np.zeros(2, np.bool_)
    with pytest.raises(ValueError, match=r"must be of 2 lanes"):
        EpisodeRows(2).complete(EnvStep(flags, flags, flags, flags, flags), np.zeros(3, np.float32))


def test_rewards_given_are_not_written_to() -> None:
    rows = EpisodeRows(1)
    complete(rows, answer(terminated=True))
    rewards = np.array([5.0], np.float32)
    assert rows.complete(answer(), rewards)["reward"].tolist() == [0.0]
    assert rewards.tolist() == [5.0]


def test_n_step_windows_stop_at_the_nearest_last_row() -> None:
    kinds = np.array([[2, 0, 1, 1, 2, 0, 2, 0, 1, 1]], dtype=np.uint8)
    lengths, prefixes = NStepWindows(3).windows(kinds, 1, 6)
    assert lengths.tolist() == [[3, 2, 1, 0, 1, 0]]
    assert prefixes.tolist() == [[0] * 6]
    with pytest.raises(ValueError, match="n is 0"):
        NStepWindows(0)


@pytest.mark.parametrize(
    ("padding", "expected"),
    [
        (Padding.ZEROS, [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [0, 0, 5], [0, 5, 6]]),
        (Padding.REPEAT_FIRST, [[1, 1, 1], [1, 1, 2], [1, 2, 3], [2, 3, 4], [5, 5, 5], [5, 5, 6]]),
    ],
)
def test_stacks_are_oldest_first_and_padded_at_an_episodes_start(padding: Padding, expected: list[list[int]]) -> None:
    stacker = FrameStacker(2, EnvSpec((2, 2), "uint8", DiscreteActions(3), padding=padding), stack=3)
    stacks = []
    for value in range(1, 7):
        frames = np.full((2, 2, 2), value, dtype=np.uint8)
        stacks.append(stacker.push(frames, np.array([value in (1, 5), value == 1])))
    assert [stack.shape for stack in stacks] == [(2, 3, 2, 2)] * 6
    assert [stack[0, :, 0, 0].tolist() for stack in stacks] == expected  # also: earlier stacks are not overwritten
    assert stacks[-1][1, :, 1, 1].tolist() == [4, 5, 6]


@pytest.mark.parametrize(("shape", "stacked"), [((3,), (6,)), ((4, 5), (2, 4, 5)), ((3, 4, 5), (6, 4, 5))])
def test_stacked_shapes_are_those_of_the_spec(shape: tuple[int, ...], stacked: tuple[int, ...]) -> None:
    spec = EnvSpec(shape, "float32", DiscreteActions(3))
    stacker = FrameStacker(1, spec, stack=2)
    frame = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    stacker.push(frame, np.array([True]))
    stack = stacker.push(frame + 1, np.array([False]))
    assert stack.shape[1:] == stacked == spec.network_input_shape(2)
    np.testing.assert_array_equal(stack.reshape(2, *shape), np.concatenate([frame, frame + 1]))


def test_wrong_frames_are_refused() -> None:
    stacker = FrameStacker(1, EnvSpec((2,), "float32", DiscreteActions(3)), stack=2)
    with pytest.raises(ValueError, match=r"observations are float64\(1, 2\), must be float32\(1, 2\)"):
        stacker.push(np.zeros((1, 2)), np.array([True]))
    with pytest.raises(ValueError, match="first has shape"):
        stacker.push(np.zeros((1, 2), np.float32), np.array([True, True]))
    with pytest.raises(ValueError, match="stack is 0"):
        FrameStacker(1, EnvSpec((2,), "float32", DiscreteActions(3)), stack=0)

"""Epsilon ladders, epsilon-greedy choice, Gaussian noise."""

from __future__ import annotations

import numpy as np
import pytest

from apexrl.ops.exploration import (
    annealed_epsilons,
    epsilon_greedy,
    gaussian_exploration,
    ladder_epsilons,
    ladder_fraction,
    paper_epsilons,
)


def test_paper_ladder_of_eight() -> None:
    expected = [0.4, 0.16, 0.064, 0.0256, 0.01024, 0.004096, 0.0016384, 0.00065536]
    np.testing.assert_allclose(paper_epsilons(range(8), 8), expected, rtol=1e-12)


def test_paper_ladder_of_four() -> None:
    expected = [0.4, 0.04715560318259697, 0.005559127278786374, 0.00065536]
    np.testing.assert_allclose(paper_epsilons(range(4), 4), expected, rtol=1e-12)


def test_paper_ladder_of_one_does_not_divide_by_zero() -> None:
    assert paper_epsilons([0], 1, single_epsilon=0.4).tolist() == [0.4]


def test_paper_ladder_wraps_indices_beyond_its_length() -> None:
    np.testing.assert_array_equal(paper_epsilons([8, 15], 8), paper_epsilons([0, 7], 8))


def test_dqfd_ladder() -> None:
    """epsilon_i = 0.1^(x + 3 (1 - x)), x = i / (N - 1): base 0.1 with a = 3, b = -2."""
    expected = [
        0.001,
        0.00193069772888325,
        0.003727593720314942,
        0.007196856730011522,
        0.013894954943731375,
        0.026826957952797263,
        0.0517947467923121,
        0.1,
    ]
    np.testing.assert_allclose(paper_epsilons(range(8), 8, base=0.1, a=3.0, b=-2.0), expected, rtol=1e-12)


def test_ladder_fractions_mirror_bits() -> None:
    expected = [0, 1, 1 / 2, 1 / 4, 3 / 4, 1 / 8, 5 / 8, 3 / 8, 7 / 8, 1 / 16]
    assert [ladder_fraction(k) for k in range(10)] == expected


@pytest.mark.parametrize("bits", [1, 2, 3, 7])
def test_elastic_ladder_is_the_papers_grid_at_powers_of_two_plus_one(bits: int) -> None:
    lanes = 2**bits + 1
    elastic = np.sort(ladder_epsilons(range(lanes)))
    np.testing.assert_allclose(elastic, np.sort(paper_epsilons(range(lanes), lanes)), rtol=1e-12)


def test_elastic_ladder_never_shifts() -> None:
    np.testing.assert_array_equal(ladder_epsilons(range(17)), ladder_epsilons(range(360))[:17])


def test_elastic_ladder_is_near_the_papers_mean_exponent_at_any_size() -> None:
    """Mean place on the ladder over 360 lanes is that of the even grid."""
    mean = np.mean([ladder_fraction(k) for k in range(360)])
    assert abs(mean - 0.5) < 0.009


def test_negative_index_is_refused() -> None:
    with pytest.raises(ValueError, match="index is -1"):
        ladder_fraction(-1)


def test_annealing_starts_at_one_and_ends_at_the_lanes_own() -> None:
    final = np.array([0.4, 0.0])
    np.testing.assert_array_equal(annealed_epsilons(final, 0, 1000), [1.0, 1.0])
    np.testing.assert_allclose(annealed_epsilons(final, 500, 1000), [0.7, 0.5])
    np.testing.assert_allclose(annealed_epsilons(final, 5000, 1000), final)
    np.testing.assert_array_equal(annealed_epsilons(final, 0, 0), final)


def test_epsilon_greedy_frequencies() -> None:
    """Each lane explores with its own epsilon; the greedy action also comes out of uniform draws."""
    draws, num_actions = 4000, 4
    epsilons = np.tile([0.0, 0.1, 0.5, 1.0], draws)
    q = np.zeros((4 * draws, num_actions), np.float32)
    q[:, 2] = 1.0
    actions = epsilon_greedy(q, epsilons, np.random.default_rng(7)).reshape(draws, 4)
    for lane, epsilon in enumerate([0.0, 0.1, 0.5, 1.0]):
        counts = np.bincount(actions[:, lane], minlength=num_actions)
        expected = np.full(num_actions, draws * epsilon / num_actions)
        expected[2] += draws * (1 - epsilon)
        deviation = np.sqrt(np.maximum(expected * (1 - expected / draws), 0.0))
        assert np.all(np.abs(counts - expected) <= 4.5 * deviation), (epsilon, counts, expected)


def test_epsilon_greedy_breaks_ties_by_the_first_and_repeats_with_the_seed() -> None:
    q = np.ones((3, 5), np.float32)
    assert epsilon_greedy(q, np.zeros(3), np.random.default_rng(1)).tolist() == [0, 0, 0]
    half = np.full(3, 0.5)
    first = epsilon_greedy(q, half, np.random.default_rng(3))
    np.testing.assert_array_equal(first, epsilon_greedy(q, half, np.random.default_rng(3)))


def test_gaussian_noise_has_each_lanes_stddev_and_stays_inside() -> None:
    means = np.zeros((3, 40_000), np.float32)
    actions = gaussian_exploration(means, np.array([0.0, 0.1, 3.0]), np.random.default_rng(0))
    assert actions.dtype == np.float32
    np.testing.assert_array_equal(actions[0], means[0])
    np.testing.assert_allclose(actions[1].std(), 0.1, rtol=0.02)
    assert abs(actions[1].mean()) < 0.002
    assert (actions[2].min(), actions[2].max()) == (-1.0, 1.0)
    assert np.mean(np.abs(actions[2]) == 1.0) == pytest.approx(0.739, abs=0.01)  # P(|N(0, 3)| > 1)


def test_gaussian_noise_takes_as_many_draws_whatever_the_stddev() -> None:
    generators = [np.random.default_rng(3) for _ in range(2)]
    for generator, stddev in zip(generators, (0.0, 0.5), strict=True):
        gaussian_exploration(np.zeros((4, 2), np.float32), np.full(4, stddev), generator)
    assert generators[0].random() == generators[1].random()

"""Who explores how much, and how: epsilon-greedy or with Gaussian noise. NumPy only: actors decide on the host.

Ape-X (Horgan et al. 2018, section 4.1) gives actor i of N the constant epsilon_i = base^(1 + 7 i / (N - 1)) with base
0.4. Its grid shifts for everybody when N changes, so :func:`ladder_epsilons` places indices on it by bit reversal.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def ladder_fraction(index: int) -> float:
    """Place u in [0, 1] of one index on a ladder that never shifts.

    Index 0 -> 0, 1 -> 1, and k >= 2 -> the bits of k - 1 mirrored at the binary point: 1/2, 1/4, 3/4, 1/8, 5/8, ...
    The first 2^m + 1 indices fill the paper's grid {i / (N - 1)} of N = 2^m + 1 exactly.

    Raises:
        ValueError: ``index`` is negative.
    """
    if index < 0:
        raise ValueError(f"index is {index}, must be 0 or above")
    if index < 2:
        return float(index)
    rest, fraction, bit = index - 1, 0.0, 0.5
    while rest:
        if rest & 1:
            fraction += bit
        rest >>= 1
        bit /= 2
    return fraction


def ladder_epsilons(
    indices: Sequence[int], *, base: float = 0.4, a: float = 1.0, b: float = 7.0
) -> npt.NDArray[np.float64]:
    """Epsilon [L] = base^(a + b u) with u = :func:`ladder_fraction` of each leased index."""
    fractions = np.array([ladder_fraction(index) for index in indices], np.float64)
    return np.asarray(base ** (a + b * fractions), np.float64)


def paper_epsilons(
    indices: Sequence[int],
    num_lanes: int,
    *,
    base: float = 0.4,
    a: float = 1.0,
    b: float = 7.0,
    single_epsilon: float = 0.4,
) -> npt.NDArray[np.float64]:
    """Epsilon [L] = base^(a + b i / (N - 1)) for a fixed number N = ``num_lanes``; indices beyond N wrap around.

    ``single_epsilon`` is that of the only lane when N is 1, where the formula divides by 0.
    """
    if num_lanes < 1:
        raise ValueError(f"num_lanes is {num_lanes}, must be at least 1")
    wrapped = np.array(indices, np.int64) % num_lanes
    if num_lanes == 1:
        return np.full(len(wrapped), single_epsilon, np.float64)
    return np.asarray(base ** (a + b * wrapped / (num_lanes - 1)), np.float64)


def annealed_epsilons(
    final_epsilons: npt.NDArray[np.float64], frames: int, anneal_frames: int
) -> npt.NDArray[np.float64]:
    """Epsilon [L] falling linearly from 1 to ``final_epsilons`` over ``anneal_frames``; 0 = final at once."""
    if anneal_frames <= 0:
        return final_epsilons
    progress = min(max(frames / anneal_frames, 0.0), 1.0)
    return np.asarray(1.0 + progress * (final_epsilons - 1.0), np.float64)


def epsilon_greedy(
    q: npt.NDArray[np.float32], epsilons: npt.NDArray[np.float64], generator: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Actions [L]: uniform with probability ``epsilons`` [L], else the best of ``q`` [L, A] (the first of equals).

    Takes the same number of draws from ``generator`` whatever the outcome, so that traces stay comparable.
    """
    lanes, num_actions = q.shape
    explore, uniform = generator.random((2, lanes))
    actions: npt.NDArray[np.int64] = np.where(
        explore < epsilons, (uniform * num_actions).astype(np.int64), q.argmax(axis=1)
    )
    return actions


def gaussian_exploration(
    means: npt.NDArray[np.float32], stddevs: npt.NDArray[np.float64], generator: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Actions [L, A] = clip(mean + stddev N(0, 1), -1, 1); ``means`` is [L, A], ``stddevs`` [L].

    Takes the same number of draws from ``generator`` whatever the stddevs, so that traces stay comparable.
    """
    noise = generator.standard_normal(means.shape) * stddevs[:, None]
    return np.clip(means + noise, -1.0, 1.0).astype(np.float32)

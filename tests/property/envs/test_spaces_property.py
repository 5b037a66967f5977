"""Spaces of gymnasium as actors see them: bounds of actions and the order of flattened observations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.spaces import Box, Dict, Tuple
from gymnasium.vector.utils import concatenate, create_empty_array
from hypothesis import given, settings
from hypothesis import strategies as st

from apexrl.envs.spaces import BoundedActions, ObservationLayout

FINITE = st.floats(-1e6, 1e6, allow_nan=False, width=32)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    """Boxes of actions: vectors and matrices of float32 or float64, some dimensions without width."""
    shape = draw(st.sampled_from([(), (1,), (4,), (2, 3)]))
    size = int(np.prod(shape))
    ends = draw(st.lists(st.tuples(FINITE, FINITE), min_size=size, max_size=size))
    low = np.array([min(pair) for pair in ends]).reshape(shape)
    high = np.array([max(pair) for pair in ends]).reshape(shape)
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    return Box(low.astype(dtype), high.astype(dtype), shape, dtype)


@settings(max_examples=60, deadline=None)
@given(space=boxes(), seed=st.integers(0, 1 << 30))
def test_actions_are_mapped_affinely_and_clipped_to_the_bounds(space: Box, seed: int) -> None:
    bounds = BoundedActions(space, "x")
    lanes, size = 3, bounds.spec.size
    assert size == int(np.prod(space.shape))
    # Half of them lie beyond [-1, 1].
    actions = np.random.default_rng(seed).uniform(-2, 2, (lanes, size)).astype(np.float32)
    mapped = bounds.to_bounds(actions, lanes)
    assert (mapped.shape, mapped.dtype) == ((lanes, *space.shape), space.dtype)
    assert ((space.low <= mapped) & (mapped <= space.high)).all()

    shares = (np.clip(actions.astype(np.float64), -1, 1) + 1) / 2
    low, high = (bound.astype(np.float64).reshape(-1) for bound in (space.low, space.high))
    expected = low + shares * (high - low)
    scale = np.maximum(np.abs(low), np.abs(high))
    assert (np.abs(mapped.reshape(lanes, -1) - expected) <= 1e-6 * scale + 1e-30).all()

    corners = np.stack([-np.ones(size), np.zeros(size), np.ones(size)]).astype(np.float32)
    ends = bounds.to_bounds(corners, 3).reshape(3, -1)
    assert (np.abs(ends[[0, 2]] - [low, high]) <= 1e-15 * scale).all()
    assert (np.abs(ends[1] - (low + high) / 2) <= 1e-6 * scale + 1e-30).all()
    np.testing.assert_array_equal(bounds.to_bounds(7 * corners, 3), bounds.to_bounds(corners, 3))


def test_bounds_of_one_leave_actions_as_they_are() -> None:
    bounds = BoundedActions(Box(-1, 1, (5,), np.float32), "x")
    actions = np.random.default_rng(0).uniform(-1, 1, (4, 5)).astype(np.float32)
    np.testing.assert_array_equal(bounds.to_bounds(actions, 4), actions)


LEAVES = st.sampled_from(
    [
        Box(-1, 1, (), np.float64),
        Box(-np.inf, np.inf, (3,), np.float64),
        Box(-1, 1, (2, 2), np.float32),
        Box(0, 255, (2, 1, 2), np.uint8),
        Box(-9, 9, (2,), np.int64),
    ]
)
NAMES = st.sampled_from(["velocity", "Position", "a", "b/c", "zeta", "height"])
NESTED = st.recursive(
    LEAVES,
    lambda parts: st.one_of(
        st.dictionaries(NAMES, parts, min_size=1, max_size=4).map(Dict),
        st.lists(st.tuples(NAMES, parts), min_size=1, max_size=3, unique_by=lambda pair: pair[0]).map(
            lambda pairs: Dict(dict(pairs), sort_keys=False)
        ),
        st.lists(parts, min_size=1, max_size=3).map(Tuple),
    ),
    max_leaves=6,
).filter(lambda space: isinstance(space, Dict | Tuple))


@settings(max_examples=60, deadline=None)
@given(space=NESTED, seed=st.integers(0, 1 << 30))
def test_nested_observations_are_flattened_as_gymnasium_flattens_them(space: Any, seed: int) -> None:
    space.seed(seed)
    observations = [space.sample() for _ in range(3)]
    batch = concatenate(space, observations, create_empty_array(space, n=3))
    layout = ObservationLayout(space, "x")
    array = layout.convert(batch)
    assert (array.shape, array.dtype.name) == ((3, *layout.shape), layout.dtype)
    expected = np.stack([spaces.flatten(space, observation) for observation in observations]).astype(np.float32)
    np.testing.assert_array_equal(array, expected)
    assert layout.shape == spaces.flatten_space(space).shape


def test_keys_of_a_plain_dictionary_are_sorted_and_those_of_another_stay() -> None:
    parts = {"velocity": Box(-1, 1, (1,)), "height": Box(-1, 1, ()), "angle": Box(-1, 1, (2,))}
    batch = {"velocity": np.array([[1.0]]), "height": np.array([2.0]), "angle": np.array([[3.0, 4.0]])}
    assert ObservationLayout(Dict(parts), "x").convert(batch).tolist() == [[3.0, 4.0, 2.0, 1.0]]
    assert ObservationLayout(Dict(parts, sort_keys=False), "x").convert(batch).tolist() == [[1.0, 2.0, 3.0, 4.0]]


@pytest.mark.parametrize("shape", [(3,), (2, 2)])
@pytest.mark.parametrize(
    "actions",
    [
        np.zeros((2, 3), np.float32),
        np.zeros((4, 4, 1), np.float32),
        np.zeros((4, 5), np.float32),
        np.zeros((4, 3), np.int64),
        np.full((4, 4), np.nan, np.float32),
        np.full((4, 3), np.inf, np.float32),
    ],
)
def test_wrong_actions_are_refused(shape: tuple[int, ...], actions: np.ndarray) -> None:
    with pytest.raises(ValueError, match="actions"):
        BoundedActions(Box(-2, 2, shape, np.float32), "x").to_bounds(actions, 4)

"""Sum tree against a naive one under random operations."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from apexrl.replay.sum_tree import SumTree

sizes = st.integers(1, 200)
weights = st.one_of(st.just(0.0), st.floats(1e-9, 1e9))


@st.composite
def operations(draw: st.DrawFn) -> tuple[int, list[list[tuple[int, float]]]]:
    num_leaves = draw(sizes)
    change = st.tuples(st.integers(0, num_leaves - 1), weights)
    return num_leaves, draw(st.lists(st.lists(change, min_size=1, max_size=40), min_size=1, max_size=8))


@settings(max_examples=150, deadline=None)
@given(operations(), st.integers(0, 2**32))
def test_tree_equals_naive_sums(case: tuple[int, list[list[tuple[int, float]]]], seed: int) -> None:
    num_leaves, batches = case
    naive = np.zeros(num_leaves)
    trees = [SumTree(num_leaves, backend) for backend in ("numba", "numpy")]
    uniforms = np.random.default_rng(seed).random(64)
    for batch in batches:
        for leaf, weight in batch:
            naive[leaf] = weight
        leaves = np.array([leaf for leaf, _ in batch])
        values = np.array([weight for _, weight in batch])
        for tree in trees:
            tree.set(leaves, values)
            tree.check_valid()
            np.testing.assert_array_equal(tree.weights(), naive)
            np.testing.assert_allclose(tree.total, naive.sum(), rtol=1e-12)
    if naive.sum() == 0.0:
        return
    targets = (np.arange(64) + uniforms) / 64 * trees[0].total
    found = [tree.find(targets) for tree in trees]
    np.testing.assert_array_equal(found[0], found[1])
    assert np.all(naive[found[0]] > 0.0)
    # The leaf's interval of the running sum holds the target, but for rounding.
    ends = np.cumsum(naive)
    slack = 1e-9 * naive.sum()
    assert np.all(targets <= ends[found[0]] + slack)
    assert np.all(targets >= ends[found[0]] - naive[found[0]] - slack)

"""Sum tree: golden draws of PER, edges, and equality of the two backends."""

import numpy as np
import pytest

from apexrl.replay.sum_tree import SumTree

PRIORITIES = np.array([4.0, 1.0, 0.25, 2.0])
BACKENDS = ["numba", "numpy"]


def tree_of(weights: np.ndarray, backend: str = "auto") -> SumTree:
    tree = SumTree(len(weights), backend)
    tree.set(np.arange(len(weights)), np.asarray(weights, np.float64))
    return tree


@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_per_weights_and_strata(backend: str) -> None:
    tree = tree_of(PRIORITIES**0.6, backend)
    np.testing.assert_allclose(
        tree.weights(), [2.297396709994, 1.0, 0.435275281648, 1.515716566510], rtol=0, atol=1e-12
    )
    assert tree.total == pytest.approx(5.248388558153, abs=1e-12)
    np.testing.assert_allclose(
        tree.weights() / tree.total,
        [0.437733731895, 0.190534673437, 0.082935033644, 0.288796561024],
        rtol=0,
        atol=1e-12,
    )
    for uniform, drawn in ((0.5, [0, 0, 1, 3]), (0.01, [0, 0, 1, 3]), (0.99, [0, 1, 3, 3])):
        leaves, weights = tree.sample(np.full(4, uniform))
        assert leaves.tolist() == drawn
        np.testing.assert_array_equal(weights, tree.get(leaves))


def test_golden_importance_weights_follow_from_the_probabilities() -> None:
    tree = tree_of(PRIORITIES**0.6)
    weights = (4 * tree.get(np.array([0, 2, 1])) / tree.total) ** -0.4
    np.testing.assert_allclose(weights, [0.799267212193, 1.554822416488, 1.114772881928], rtol=0, atol=1e-12)
    np.testing.assert_allclose(weights / weights.max(), [0.514056913328, 1.0, 0.716977624008], rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("num_leaves", [1, 2, 7, 8, 9, 63, 65, 513, 4097])
def test_top_edge_and_zero_leaves(backend: str, num_leaves: int) -> None:
    weights = np.zeros(num_leaves)
    weights[num_leaves // 2] = 0.1
    tree = tree_of(weights, backend)
    total = tree.total
    targets = np.array([0.0, np.nextafter(total, 0.0), total, np.nextafter(total, np.inf), 2 * total])
    assert tree.find(targets).tolist() == [num_leaves // 2] * 5
    tree.check_valid()


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_weight_is_never_drawn_although_rounding_reaches_past_it(backend: str) -> None:
    weights = np.full(100, 0.1)
    weights[90:] = 0.0
    weights[::3] = 0.0
    tree = tree_of(weights, backend)
    targets = np.concatenate([np.linspace(0.0, tree.total, 10_001), np.cumsum(weights)])
    assert np.all(tree.get(tree.find(targets)) > 0.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_refuses_what_would_poison_the_root(backend: str) -> None:
    tree = tree_of(np.ones(5), backend)
    for bad in (np.nan, np.inf, -1.0):
        with pytest.raises(ValueError, match="negative or not finite"):
            tree.set(np.array([0, 1]), np.array([2.0, bad]))
    for leaf in (-1, 5):
        with pytest.raises(IndexError, match=r"\[0, 5\)"):
            tree.set(np.array([0, leaf]), np.array([2.0, 2.0]))
    assert tree.total == 5.0
    with pytest.raises(ValueError, match="nothing can be drawn"):
        SumTree(3, backend).sample(np.zeros(1))


def test_backends_agree_bit_for_bit_at_a_size_with_many_levels() -> None:
    rng = np.random.default_rng(5)
    trees = [SumTree(70_001, backend) for backend in BACKENDS]
    for size in (1, 32, 700, 20_000):
        leaves = rng.integers(0, 70_001, size)
        weights = rng.random(size) ** 8 * (rng.random(size) < 0.9)
        uniforms = rng.random(512)
        draws = []
        for tree in trees:
            tree.set(leaves, weights)
            tree.check_valid()
            draws.append(tree.sample(uniforms) if tree.total > 0 else (leaves, weights))
        assert trees[0].total == trees[1].total
        np.testing.assert_array_equal(draws[0][0], draws[1][0])
        np.testing.assert_array_equal(draws[0][1], draws[1][1])


def test_load_gives_the_sums_that_updates_gave() -> None:
    rng = np.random.default_rng(6)
    tree = SumTree(1000)
    for _ in range(20):
        tree.set(rng.integers(0, 1000, 50), rng.random(50))
    other = SumTree(1000)
    other.load(tree.weights())
    other.check_valid()
    assert other.total == tree.total


def test_check_valid_notices_a_wrong_sum() -> None:
    tree = tree_of(np.ones(20))
    tree._tree[3] = 2.0
    with pytest.raises(ValueError, match="not the sum of its children"):
        tree.check_valid()

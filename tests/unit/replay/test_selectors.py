"""Selectors: frequencies against closed forms, golden rank probabilities, order independence."""

import numpy as np
import pytest
from scipy.stats import chi2

from apexrl.replay.selectors import PRIORITY_EPSILON, ProportionalSelector, make_selector
from apexrl.types import SelectorConfig, SelectorKind

NUM_LEAVES = 50
LEAVES = np.array([3, 7, 8, 9, 20, 21, 33, 40, 41, 49])
PRIORITIES = np.array([0.5, 3.0, 0.0, 1.0, 8.0, 0.1, 1.5, 2.5, 0.7, 4.0])


def closed_form(config: SelectorConfig) -> np.ndarray:
    n = len(PRIORITIES)
    if config.kind is SelectorKind.UNIFORM:
        probabilities = np.full(n, 1 / n)
    elif config.kind is SelectorKind.RANK_BASED:
        ranks = np.empty(n)
        ranks[np.argsort(-PRIORITIES)] = np.arange(1, n + 1)
        probabilities = ranks**-config.exponent / np.sum(ranks**-config.exponent)
    else:
        q = (PRIORITIES + 1e-6) ** config.exponent
        probabilities = q / q.sum()
    return (1 - config.uniform_mixture) * probabilities + config.uniform_mixture / n


CONFIGS = [
    SelectorConfig(SelectorKind.PROPORTIONAL, 0.6),
    SelectorConfig(SelectorKind.PROPORTIONAL, 1.0, 0.25),
    SelectorConfig(SelectorKind.PROPORTIONAL, 0.0),
    SelectorConfig(SelectorKind.RANK_BASED, 0.7),
    SelectorConfig(SelectorKind.RANK_BASED, 1.0, 0.5),
    SelectorConfig(SelectorKind.UNIFORM),
    SelectorConfig(SelectorKind.UNIFORM, uniform_mixture=0.5),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_frequencies_follow_the_closed_form(config: SelectorConfig) -> None:
    selector = make_selector(config, NUM_LEAVES)
    selector.insert(LEAVES, np.full(len(LEAVES), 1.0))
    selector.update(LEAVES, PRIORITIES)
    expected = closed_form(config)
    np.testing.assert_allclose(selector.probabilities(LEAVES), expected, rtol=1e-12)
    n = 50_000
    leaves, probabilities = selector.draw(np.random.default_rng(11).random(n))
    counts = np.array([np.count_nonzero(leaves == leaf) for leaf in LEAVES])
    assert counts.sum() == n
    likely = expected * n > 5
    statistic = np.sum((counts - expected * n)[likely] ** 2 / (expected * n)[likely])
    assert statistic < chi2.ppf(0.999, np.count_nonzero(likely) - 1)
    of_leaf = dict(zip(LEAVES.tolist(), expected, strict=True))
    np.testing.assert_allclose(probabilities, [of_leaf[leaf] for leaf in leaves.tolist()], rtol=1e-12)


def test_golden_rank_based_probabilities() -> None:
    selector = make_selector(SelectorConfig(SelectorKind.RANK_BASED, 0.7), 4)
    selector.insert(np.arange(4), np.array([4.0, 1.0, 0.25, 2.0]))
    np.testing.assert_allclose(
        selector.probabilities(np.array([0, 3, 1, 2])),
        [0.406840716626, 0.250439837697, 0.188555642147, 0.154163803530],
        rtol=0,
        atol=1e-12,
    )


def test_golden_priority_zero_without_epsilon_is_never_drawn() -> None:
    selector = ProportionalSelector(4, 0.6, epsilon=0.0)
    selector.insert(np.arange(4), np.array([4.0, 0.0, 0.25, 0.0]))
    points = np.concatenate([np.linspace(0.0, 1.0, 5001), [np.nextafter(1.0, 0.0)]])
    assert set(selector.draw(points)[0].tolist()) == {0, 2}


def test_epsilon_is_added_before_the_power() -> None:
    selector = make_selector(SelectorConfig(exponent=0.5), 2)
    selector.insert(np.array([0]), np.array([0.0]))
    assert selector.mass == pytest.approx(PRIORITY_EPSILON**0.5, rel=1e-12)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_removed_items_are_not_drawn_and_empty_selectors_say_so(config: SelectorConfig) -> None:
    selector = make_selector(config, NUM_LEAVES)
    with pytest.raises(ValueError, match="nothing can be drawn"):
        selector.draw(np.array([0.5]))
    selector.insert(LEAVES, PRIORITIES)
    selector.draw(np.array([0.5]))
    selector.remove(LEAVES[::2])
    assert selector.num_items == 5
    drawn = selector.draw((np.arange(500) + 0.5) / 500)[0]
    assert set(drawn.tolist()) <= set(LEAVES[1::2].tolist())
    np.testing.assert_allclose(selector.probabilities(LEAVES[1::2]).sum(), 1.0, rtol=1e-12)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_draws_depend_on_the_items_not_on_their_history(config: SelectorConfig) -> None:
    rng = np.random.default_rng(3)
    num_leaves = 400
    restless = make_selector(config, num_leaves)
    present = np.zeros(num_leaves, bool)
    priorities = np.zeros(num_leaves)
    for _ in range(60):
        chosen = np.unique(rng.integers(0, num_leaves, 30))
        new = rng.integers(0, 6, chosen.size) / 4.0
        kind = rng.integers(0, 3)
        if kind == 0:
            chosen, new = chosen[~present[chosen]], new[~present[chosen]]
            restless.insert(chosen, new)
            present[chosen] = True
        elif kind == 1:
            restless.remove(chosen[present[chosen]])
            present[chosen] = False
        else:
            chosen, new = chosen[present[chosen]], new[present[chosen]]
            restless.update(chosen, new)
        priorities[chosen] = new[: chosen.size]
        if present.any():
            restless.draw(rng.random(4))
    fresh = make_selector(config, num_leaves)
    fresh.insert(np.flatnonzero(present), priorities[present])
    loaded = make_selector(config, num_leaves)
    loaded.load_state(restless.state())
    points = rng.random(256)
    for other in (fresh, loaded):
        assert other.num_items == restless.num_items
        assert other.mass == restless.mass
        for mine, theirs in zip(restless.draw(points), other.draw(points), strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_of_a_leaf_updated_twice_the_last_priority_stays() -> None:
    for kind in (SelectorKind.PROPORTIONAL, SelectorKind.RANK_BASED):
        selector = make_selector(SelectorConfig(kind, 1.0), 3)
        selector.insert(np.arange(3), np.array([1.0, 2.0, 3.0]))
        selector.update(np.array([0, 0]), np.array([9.0, 0.5]))
        probabilities = selector.probabilities(np.arange(3))
        assert probabilities[0] < probabilities[1] < probabilities[2]

from __future__ import annotations

import numpy as np
import pytest

from apexrl.experience.importance import importance_weights

#: Priorities (4, 1, .25, 2) with alpha = .6.
PROBABILITIES = np.array([0.437733731895, 0.190534673437, 0.082935033644, 0.288796561024])


@pytest.mark.parametrize(
    ("items", "expected"),
    [([0, 2, 1], [0.514056913328, 1, 0.716977624008]), ([0, 1], [0.716977624008, 1])],
)
def test_golden_weights_are_normalised_over_the_batch(items: list[int], expected: list[float]) -> None:
    weights = importance_weights(PROBABILITIES[items], num_items=4, beta=0.4)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_each_batch_of_several_has_a_largest_weight_of_its_own() -> None:
    batches = PROBABILITIES.reshape(2, 2)
    both = importance_weights(batches, num_items=4, beta=0.4)
    for weights, batch in zip(both, batches, strict=True):
        np.testing.assert_array_equal(weights, importance_weights(batch, num_items=4, beta=0.4))


def test_a_beta_of_zero_gives_ones() -> None:
    assert importance_weights(PROBABILITIES, 4, 0.0).tolist() == [1, 1, 1, 1]


def test_a_beta_of_one_undoes_the_priorities() -> None:
    products = importance_weights(PROBABILITIES, 4, 1.0) * PROBABILITIES
    np.testing.assert_allclose(products, products[0], rtol=1e-6)


def test_tiny_probabilities_stay_finite() -> None:
    weights = importance_weights(np.array([1e-300, 1e-3]), 10**6, 1.0)
    assert weights[0] == 1
    assert np.isfinite(weights).all()


def test_an_empty_batch_has_no_weights() -> None:
    assert importance_weights(np.zeros(0), 5, 0.4).shape == (0,)


@pytest.mark.parametrize("wrong", [0.0, -0.1, np.nan, np.inf])
def test_impossible_probabilities_are_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="must be finite and above 0"):
        importance_weights(np.array([0.5, wrong]), 5, 0.4)


def test_an_empty_table_is_refused() -> None:
    with pytest.raises(ValueError, match="num_items is 0"):
        importance_weights(np.array([0.5]), 0, 0.4)

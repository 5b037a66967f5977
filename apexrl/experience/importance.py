"""Importance weights of prioritised samples (Schaul et al. 2016, section 3.4)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def importance_weights(probabilities: npt.NDArray[np.floating], num_items: int, beta: float) -> npt.NDArray[np.float32]:
    """w_i = (N P_i)^-beta / max_j w_j over each batch.

    Args:
        probabilities: [..., B] with which each item was truly drawn, above 0.
        num_items: N, items in the table (over all shards) at the draw.
        beta: importance sampling exponent in [0, 1]; 0 gives weights of 1.

    Returns:
        [..., B] f32 in (0, 1]; the largest of each batch is 1.

    Raises:
        ValueError: a probability is not finite and above 0, or ``num_items`` is below 1.
    """
    if num_items < 1:
        raise ValueError(f"num_items is {num_items}, must be at least 1")
    exact = np.asarray(probabilities, dtype=np.float64)
    if exact.size == 0:
        return np.zeros(exact.shape, dtype=np.float32)
    least = exact.min(axis=-1, keepdims=True)
    if not (least.min() > 0.0 and exact.max() < np.inf):  # a NaN is the minimum, and fails here too
        worst = exact[~(np.isfinite(exact) & (exact > 0.0))][0]
        raise ValueError(f"probabilities hold {worst}, must be finite and above 0")
    # The largest weight is that of the least probability: N cancels, and no power of a tiny P can overflow.
    weights: npt.NDArray[np.float32] = np.power(least / exact, beta).astype(np.float32)
    return weights

"""What every vector environment does per lane: seeds and the check of actions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from apexrl.types import Array


def lane_seeds(seed: int, num_lanes: int) -> npt.NDArray[np.int64]:
    """One seed in [0, 2^31) per lane.

    Hashed, not ``seed + lane``: actors with neighbouring seeds would otherwise play the same episodes.
    """
    return (np.random.SeedSequence(seed).generate_state(num_lanes) & 0x7FFF_FFFF).astype(np.int64)


def require_actions(actions: Array, num_lanes: int, num_actions: int) -> npt.NDArray[np.int64]:
    """``actions`` as int64; ValueError unless they are [num_lanes] of integers in [0, num_actions).

    The emulators index their tables with actions and do not check them.
    """
    if actions.shape != (num_lanes,) or actions.dtype.kind not in "iu":
        raise ValueError(
            f"actions have shape {actions.shape} and dtype {actions.dtype}, must be ({num_lanes},) of integers"
        )
    numbers: npt.NDArray[np.int64] = actions.astype(np.int64, copy=False)
    if numbers.min() < 0 or numbers.max() >= num_actions:
        raise ValueError(f"actions are {numbers.tolist()}, must be in [0, {num_actions - 1}]")
    return numbers

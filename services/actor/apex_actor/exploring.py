"""Which epsilon each lane explores with: from leased indices, or from a hash while no lease could be had."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from apexrl.config import ExplorationConfig
from apexrl.ops.exploration import annealed_epsilons, ladder_epsilons, paper_epsilons

#: Hashed indices fall into this many rungs of the ladder.
HASHED_RUNGS = 1 << 16


def hashed_indices(incarnation: bytes, num_lanes: int) -> list[int]:
    """Stand-in indices of an actor that has no lease yet: spread evenly over the ladder, but not unique."""
    return [
        int.from_bytes(hashlib.sha256(incarnation + lane.to_bytes(4, "little")).digest()[:8], "little") % HASHED_RUNGS
        for lane in range(num_lanes)
    ]


def lane_epsilons(config: ExplorationConfig, indices: list[int], global_frames: int) -> npt.NDArray[np.float64]:
    """Epsilon [L] of lanes that hold ``indices``, after ``global_frames`` frames of the whole run."""
    if config.mode == "fixed":
        final = np.full(len(indices), config.epsilon)
    elif config.mode == "paper":
        final = paper_epsilons(
            indices, config.num_lanes, base=config.base, a=config.a, b=config.b, single_epsilon=config.epsilon
        )
    else:
        final = ladder_epsilons(indices, base=config.base, a=config.a, b=config.b)
    return annealed_epsilons(final, global_frames, config.anneal_frames)

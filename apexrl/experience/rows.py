"""From the flags of a vector environment to the kind, age and continuation of rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from apexrl.env_types import EnvStep
from apexrl.types import Array, RowKind

MAX_AGE = int(np.iinfo(np.uint16).max)


class EpisodeRows:
    """Where every lane stands in its episode, for environments with NEXT_STEP autoreset.

    Use: read ``first`` for the frame stack, act, step the environment, then :meth:`complete` the current rows.
    """

    def __init__(self, num_lanes: int) -> None:
        """All lanes are at the first row of an episode, as after ``VectorEnv.reset``."""
        self._kinds = np.full(num_lanes, RowKind.FIRST, dtype=np.uint8)
        self._ages = np.zeros(num_lanes, dtype=np.uint16)

    @property
    def first(self) -> npt.NDArray[np.bool_]:
        """[L] lanes whose current row is the first of an episode."""
        return np.asarray(self._kinds == RowKind.FIRST)

    @property
    def last(self) -> npt.NDArray[np.bool_]:
        """[L] lanes whose current row holds a final observation: the environment will ignore their action."""
        return np.asarray(self._kinds == RowKind.LAST)

    @property
    def ages(self) -> npt.NDArray[np.uint16]:
        """[L] rows since the episode's first, saturating at 65,535."""
        return self._ages.copy()

    def complete(self, step: EnvStep, rewards: npt.NDArray[np.float32]) -> dict[str, Array]:
        """Complete the current rows with what followed their actions, and go on to the next rows.

        Args:
            step: the environment's answer to the actions of the current rows.
            rewards: [L] training rewards (clipped or scaled) that followed.

        Returns:
            ``kind``, ``age``, ``reward`` and ``continuation`` of the rows just completed, each [L]. The continuation
            is 0 after termination or life loss, else 1, also into a truncation; a last row's reward and continuation
            are 0. A life loss changes neither kind nor age.

        Raises:
            ValueError: an episode ended in the very step that should have reset it; autoreset is not NEXT_STEP.
        """
        last = self.last
        ended = step.terminated | step.truncated
        if np.any(ended & last):
            lane = int(np.flatnonzero(ended & last)[0])
            raise ValueError(f"lane {lane}: an episode ended in the step after an end; autoreset must be NEXT_STEP")
        continuations = ~(step.terminated | step.life_lost | last)
        columns: dict[str, Array] = {
            "kind": self._kinds,
            "age": self._ages,
            "reward": np.where(last, np.float32(0.0), rewards).astype(np.float32),
            "continuation": continuations.astype(np.uint8),
        }
        ages = np.minimum(self._ages.astype(np.int64) + 1, MAX_AGE)
        self._ages = np.where(last, 0, ages).astype(np.uint16)
        kinds = np.where(ended, RowKind.LAST, RowKind.MID)
        self._kinds = np.where(last, RowKind.FIRST, kinds).astype(np.uint8)
        return columns

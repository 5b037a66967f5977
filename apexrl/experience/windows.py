"""Which rows belong to an item: rules that give every start row its window length and prefix."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from apexrl.types import RowKind


class WindowRule(Protocol):
    """Gives the items of consecutive start rows."""

    @property
    def tail(self) -> int:
        """Rows needed behind a start row until its item is complete whatever they are: the longest window."""
        ...

    def windows(
        self, kinds: npt.NDArray[np.uint8], first_start: int, starts: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Lengths and prefixes, each [L, starts], of the start rows ``first_start`` and following.

        ``kinds`` is [L, rows] and holds all rows known. Length 0 = no item.
        """
        ...


class NStepWindows:
    """n-step windows of value-based algorithms: they stop at the episode's last row and never pass it."""

    def __init__(self, n: int) -> None:
        if n < 1:
            raise ValueError(f"n is {n}, must be at least 1")
        self._n = n

    @property
    def tail(self) -> int:
        return self._n

    def windows(
        self, kinds: npt.NDArray[np.uint8], first_start: int, starts: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Length = min(n, rows to the next last row), 0 at a last row; all prefixes are 0."""
        num_lanes, rows = kinds.shape
        last = np.zeros((num_lanes, max(rows, first_start + starts + self._n)), dtype=np.bool_)
        last[:, :rows] = kinds == RowKind.LAST
        lengths = np.full((num_lanes, starts), self._n, dtype=np.int64)
        for k in reversed(range(self._n)):  # the nearest last row wins
            lengths[last[:, first_start + k : first_start + k + starts]] = k
        return lengths, np.zeros_like(lengths)

"""Rows of all lanes of one column, while chunks fill.

Lanes write one row each and step, and a chunk is a run of one lane's rows. Frames lie lane by lane, so that a chunk's
are in one piece when they are compressed; numbers lie row by row, because writing 8 bytes into each of dozens of places
costs more than gathering them once per chunk.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from apexrl.compiled import compiled, types
from apexrl.types import Array

#: Bytes of a row from which on a column lies lane by lane.
LANE_BY_LANE_BYTES = 256

_WORDS = (types.uint8, types.uint16, types.uint32, types.uint64)


@compiled(*((word[:, ::1], types.int64, types.int64) for word in _WORDS))
def _move_words(words: npt.NDArray[np.unsignedinteger], begin: int, end: int) -> None:
    """Move words ``begin`` to ``end`` of each row of ``words`` [L, n] to its front.

    NumPy sees rows of an array that go to another place of it, and copies them twice.
    """
    for lane in range(words.shape[0]):
        for i in range(end - begin):
            words[lane, i] = words[lane, begin + i]


class LaneBuffer:
    """``num_rows`` rows of every lane, all 0 at first.

    Args:
        name: of the column.
        num_lanes: L.
        num_rows: R.
        dtype: of its elements.
        shape: of one value.
    """

    def __init__(
        self, name: str, num_lanes: int, num_rows: int, dtype: np.dtype[np.generic], shape: tuple[int, ...]
    ) -> None:
        self.name = name
        self.dtype = dtype
        #: [L, ...] of one row of every lane.
        self.row_shape = (num_lanes, *shape)
        value_bytes = dtype.itemsize * math.prod(shape)
        self._by_lane = value_bytes >= LANE_BY_LANE_BYTES
        outer, inner = (num_lanes, num_rows) if self._by_lane else (num_rows, num_lanes)
        memory = np.zeros((outer, inner, *shape), dtype=dtype)
        self._flat = memory.reshape(outer * inner, *shape)
        self._per_lane, self._per_row = (num_rows, 1) if self._by_lane else (1, num_lanes)
        #: [L, R, ...] over the buffer's memory.
        self.rows: Array = memory if self._by_lane else memory.swapaxes(0, 1)
        # The widest word that divides a value: frames are moved by 8 bytes.
        word = np.dtype(f"u{math.gcd(value_bytes, 8)}")
        self._words = memory.view(np.uint8).reshape(outer, -1).view(word)
        self._words_per_value = value_bytes // word.itemsize

    def require_fits(self, what: str, value: Array) -> None:
        """Raise ValueError, naming ``what`` it is, unless ``value`` is a row of every lane."""
        if value.shape != self.row_shape or not (
            value.dtype == self.dtype or np.can_cast(value.dtype, self.dtype, "same_kind")
        ):
            raise ValueError(
                f"{what}: {self.name!r} is {value.dtype}{value.shape}, must be {self.dtype}{self.row_shape}"
            )

    def pick(self, lanes: npt.NDArray[np.integer], rows: npt.NDArray[np.integer]) -> Array:
        """A copy of the values at ``rows`` of ``lanes``, which are of one shape or broadcast to one."""
        return np.take(self._flat, lanes * self._per_lane + rows * self._per_row, axis=0)

    def move_to_front(self, begin: int, end: int) -> None:
        """Move rows ``begin`` to ``end`` of every lane to its front."""
        if self._by_lane:
            _move_words(self._words, begin * self._words_per_value, end * self._words_per_value)
        else:
            self._words[: end - begin] = self._words[begin:end]

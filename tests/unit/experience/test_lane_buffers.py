"""Rows of lanes come back as they were written, however they lie in memory."""

from __future__ import annotations

import numpy as np
import pytest

from apexrl.experience.lane_buffers import LANE_BY_LANE_BYTES, LaneBuffer

LANES, ROWS = 3, 10


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [("uint8", ()), ("float32", ()), ("uint16", (3,)), ("uint8", (17, 17)), ("float64", (LANE_BY_LANE_BYTES,))],
)
@pytest.mark.parametrize("begin", [1, 4, 8])
def test_rows_are_picked_and_moved(dtype: str, shape: tuple[int, ...], begin: int) -> None:
    rng = np.random.default_rng(1)
    buffer = LaneBuffer("it", LANES, ROWS, np.dtype(dtype), shape)
    assert buffer.rows.shape == (LANES, ROWS, *shape)
    assert not buffer.rows.any()
    values = rng.integers(0, 256, (ROWS, LANES, *shape)).astype(dtype)
    for row, value in enumerate(values):
        buffer.require_fits("columns", value)
        buffer.rows[:, row] = value
    np.testing.assert_array_equal(buffer.rows, values.swapaxes(0, 1))
    lanes, rows = rng.integers(0, LANES, 20), rng.integers(0, ROWS, (20, 4))
    picked = buffer.pick(lanes[:, None], rows)
    np.testing.assert_array_equal(picked, values[rows, lanes[:, None]])
    picked[:] = 0
    assert buffer.rows.any(), "what was picked is a copy"
    # Rows that stay and the place they go to may overlap.
    buffer.move_to_front(begin, ROWS)
    np.testing.assert_array_equal(buffer.rows[:, : ROWS - begin], values[begin:].swapaxes(0, 1))


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (np.zeros(LANES, np.int64), "int64"),
        (np.zeros(LANES + 1, np.uint8), r"\(4,\)"),
        (np.zeros((LANES, 1), np.uint8), r"\(3, 1\)"),
    ],
)
def test_a_row_of_another_type_or_shape_is_refused(value: np.ndarray, what: str) -> None:
    buffer = LaneBuffer("it", LANES, ROWS, np.dtype(np.uint8), ())
    with pytest.raises(ValueError, match=f"scratch: 'it' is .*{what}"):
        buffer.require_fits("scratch", value)

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from apexrl.experience.chunk_builder import ChunkBuilder
from apexrl.experience.decoding import decode_chunk
from apexrl.experience.windows import NStepWindows
from apexrl.types import (
    ROW_COLUMNS,
    Chunk,
    Codec,
    ColumnSpec,
    Geometry,
    ItemWindows,
    RowKind,
    Scope,
    Signature,
    SignatureError,
)

FIRST, MID, LAST = RowKind.FIRST, RowKind.MID, RowKind.LAST
SIGNATURE = Signature(
    (
        *(ColumnSpec(name, dtype) for name, dtype in ROW_COLUMNS),
        ColumnSpec("observation", "uint8", (2,), codec=Codec.LZ4),
        ColumnSpec("action", "int32"),
        ColumnSpec("parameter_version", "uint64", scope=Scope.ITEM),
    ),
    Geometry(context=1, starts=4, tail=2),
    stack=2,
)


def ones(windows: ItemWindows) -> np.ndarray:
    return np.ones(len(windows.lengths), dtype=np.float32)


class Lanes:
    """Feeds a builder; row i of lane l shows observation (l, i)."""

    def __init__(
        self, num_lanes: int = 1, priorities: Callable[[ItemWindows], np.ndarray] = ones, **options: Any
    ) -> None:
        self.builder = ChunkBuilder(SIGNATURE, num_lanes, NStepWindows(2), priorities, **options)
        self.num_lanes = num_lanes
        self.row = 0
        self.kinds = np.full(num_lanes, LAST, dtype=np.uint8)
        self.ages = np.zeros(num_lanes, dtype=np.uint16)

    def columns(self, *last_lanes: int) -> dict[str, Any]:
        first = self.kinds == LAST
        self.ages = np.where(first, 0, self.ages + 1).astype(np.uint16)
        self.kinds = np.where(first, FIRST, MID).astype(np.uint8)
        self.kinds[list(last_lanes)] = LAST
        lanes = np.arange(self.num_lanes, dtype=np.uint8)
        row = {
            "kind": self.kinds.copy(),
            "age": self.ages.copy(),
            "reward": np.full(self.num_lanes, 1 + self.row, dtype=np.float32),
            "continuation": np.ones(self.num_lanes, dtype=np.uint8),
            "observation": np.stack([lanes, np.full_like(lanes, self.row)], axis=1),
            "action": np.full(self.num_lanes, 7),
        }
        self.row += 1
        return row

    def rest(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return (
            {"parameter_version": np.full(self.num_lanes, max(self.row - 1, 0), dtype=np.uint64)},
            {"value": np.full((self.num_lanes, 1), self.row - 1.0)},
        )

    def append(self, *last_lanes: int) -> list[Chunk]:
        columns = self.columns(*last_lanes)
        return self.builder.append(columns, *self.rest())

    def drain(self) -> list[Chunk]:
        columns = self.columns()
        return self.builder.drain(columns, *self.rest())


def decode(chunk: Chunk) -> dict[str, np.ndarray]:
    return decode_chunk(SIGNATURE, chunk.rows, chunk.starts, chunk.blocks)


def test_a_chunk_closes_with_its_last_tail_row_and_the_next_begins_behind_its_start_rows() -> None:
    lanes = Lanes(num_lanes=2)
    assert [len(lanes.append()) for _ in range(5)] == [0, 0, 0, 0, 0]
    chunks = lanes.append()
    assert len(chunks) == 2
    for lane, chunk in enumerate(chunks):
        columns = decode(chunk)
        assert (chunk.rows, chunk.starts, chunk.num_items) == (7, 4, 4)
        assert columns["observation"].tolist() == [[0, 0]] + [[lane, row] for row in range(6)]
        assert columns["kind"].tolist() == [LAST, FIRST, MID, MID, MID, MID, MID]
        assert columns["parameter_version"].tolist() == [0, 1, 2, 3]
        assert chunk.lengths.tolist() == [2, 2, 2, 2]
        assert chunk.prefixes.tolist() == [0, 0, 0, 0]
    assert [len(lanes.append()) for _ in range(4)] == [0, 0, 0, 2]
    lanes = Lanes()
    second = [chunk for _ in range(10) for chunk in lanes.append()][1]
    assert decode(second)["observation"][:, 1].tolist() == [3, 4, 5, 6, 7, 8, 9]
    assert decode(second)["parameter_version"].tolist() == [4, 5, 6, 7]


def test_last_rows_hold_no_action_and_windows_stop_there() -> None:
    lanes = Lanes()
    chunks = [chunk for row in range(6) for chunk in (lanes.append(0) if row == 3 else lanes.append())]
    columns = decode(chunks[0])
    assert columns["kind"].tolist() == [LAST, FIRST, MID, MID, LAST, FIRST, MID]
    assert columns["age"].tolist() == [0, 0, 1, 2, 3, 0, 1]
    assert columns["action"].tolist() == [0, 7, 7, 7, 0, 7, 7]
    assert columns["reward"].tolist() == [0, 1, 2, 3, 0, 5, 6]
    assert columns["continuation"].tolist() == [0, 1, 1, 1, 0, 1, 1]
    assert chunks[0].lengths.tolist() == [2, 2, 1, 0]
    assert chunks[0].priorities.tolist() == [1, 1, 1, 0]


def test_priorities_are_asked_for_once_per_step_with_zeros_behind_each_length() -> None:
    calls: list[ItemWindows] = []

    def priorities(windows: ItemWindows) -> np.ndarray:
        calls.append(windows)
        return np.arange(len(windows.lengths), dtype=np.float32)

    lanes = Lanes(num_lanes=2, priorities=priorities)
    chunks = [chunk for row in range(6) for chunk in (lanes.append(1) if row == 3 else lanes.append())]
    (windows,) = calls
    assert windows.lengths.tolist() == [2, 2, 2, 2, 2, 2, 1]
    assert windows.rewards.tolist() == [[1, 2], [2, 3], [3, 4], [4, 5], [1, 2], [2, 3], [3, 0]]
    assert windows.continuations[-1].tolist() == [1, 0]
    assert windows.scratch["value"][:, :, 0].tolist() == [
        [0, 1, 2],
        [1, 2, 3],
        [2, 3, 4],
        [3, 4, 5],
        [0, 1, 2],
        [1, 2, 3],
        [2, 3, 0],
    ]
    assert [chunk.priorities.tolist() for chunk in chunks] == [[0, 1, 2, 3], [4, 5, 6, 0]]


@pytest.mark.parametrize("steps", range(1, 12))
def test_drain_closes_open_windows_as_truncated(steps: int) -> None:
    lanes = Lanes()
    chunks = [chunk for _ in range(steps) for chunk in lanes.append()]
    chunks += lanes.drain()
    starts = [
        (decode(chunk)["observation"][1 + start, 1], chunk.lengths[start])
        for chunk in chunks
        for start in np.flatnonzero(chunk.lengths)
    ]
    assert starts == [(row, min(2, steps - row)) for row in range(steps)]
    final = decode(chunks[-1])
    assert (final["kind"][-1], final["reward"][-1], final["action"][-1]) == (LAST, 0, 0)
    assert final["observation"][-1].tolist() == [0, steps]
    assert final["continuation"][-2] == 1


def test_drain_adds_no_row_behind_a_last_row_and_leaves_the_builder_as_new() -> None:
    lanes = Lanes(num_lanes=2)
    lanes.append()
    lanes.append(1)
    chunks = lanes.drain()
    assert [chunk.rows for chunk in chunks] == [4, 3]
    assert [chunk.lengths.tolist() for chunk in chunks] == [[2, 1, 0], [1, 0]]
    assert lanes.builder.pending_rows == 0
    assert lanes.builder.drain({}, {}, {}) == []
    with pytest.raises(ValueError, match="lane 0: row of kind 1 and age 3"):
        lanes.builder.append(
            {**lanes.columns(), "kind": np.full(2, MID, np.uint8), "age": np.full(2, 3, np.uint16)}, *lanes.rest()
        )


def test_an_old_chunk_closes_short_and_the_next_goes_on() -> None:
    now = [0.0]
    lanes = Lanes(max_chunk_age_seconds=10.0, clock=lambda: now[0])
    lanes.append()
    now[0] = 50.0
    assert lanes.append() == []  # no window is complete yet: its second row behind is missing
    chunks = lanes.append()
    assert [(chunk.rows, chunk.starts, chunk.lengths.tolist()) for chunk in chunks] == [(4, 1, [2])]
    now[0] = 59.0
    assert [len(lanes.append()) for _ in range(3)] == [0, 0, 0]
    now[0] = 61.0
    (full,) = lanes.append()
    assert (full.rows, full.starts) == (7, 4)
    assert decode(full)["observation"][:, 1].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert [len(lanes.append()) for _ in range(3)] == [0, 0, 0]
    now[0] = 71.5
    assert [chunk.starts for chunk in lanes.append()] == [4]


def test_chunks_without_an_item_are_not_made() -> None:
    signature = Signature(SIGNATURE.columns, Geometry(1, 1, 2), stack=2)
    lanes = Lanes()
    lanes.builder = ChunkBuilder(signature, 1, NStepWindows(2), ones)
    made = [len(lanes.append(0)) if row in (1, 3, 5) else len(lanes.append()) for row in range(8)]
    assert sum(made) == 3  # rows 0, 2 and 4; rows 1, 3 and 5 are last rows


def test_ages_saturate() -> None:
    lanes = Lanes()
    lanes.append()
    lanes.builder._ages[:] = 65534
    lanes.ages[:] = 65534
    lanes.append()
    lanes.ages[:] = 65534
    lanes.append()
    assert lanes.builder.pending_rows == 3
    lanes.ages[:] = 0
    with pytest.raises(ValueError, match="up to 65535"):
        lanes.append()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": None}, "names of columns are"),
        ({"extra": np.zeros(1)}, "names of columns are"),
        ({"reward": np.zeros(2, np.float32)}, r"columns: 'reward' is float32\(2,\), must be float32\(1,\)"),
        ({"kind": np.zeros(1, np.int64)}, "columns: 'kind' is int64"),
        ({"kind": np.full(1, MID, np.uint8)}, "lane 0: row of kind 1"),
        ({"kind": np.full(1, LAST, np.uint8), "age": np.ones(1, np.uint16)}, "lane 0: row of kind 2 and age 1"),
        ({"kind": np.full(1, 9, np.uint8)}, "lane 0: row of kind 9"),
    ],
)
def test_wrong_rows_are_refused_and_change_nothing(change: dict[str, Any], message: str) -> None:
    lanes = Lanes()
    columns = {name: value for name, value in {**lanes.columns(), **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        lanes.builder.append(columns, *lanes.rest())
    assert lanes.builder.pending_rows == 0
    fresh = Lanes()
    fresh.builder = lanes.builder
    assert sum(len(fresh.append()) for _ in range(6)) == 1


def test_wrong_item_columns_and_scratch_are_refused() -> None:
    lanes = Lanes()
    items, scratch = lanes.rest()
    with pytest.raises(ValueError, match="names of item_columns are"):
        lanes.builder.append(lanes.columns(), {}, scratch)
    lanes = Lanes()
    lanes.append()
    with pytest.raises(ValueError, match="names of scratch are"):
        lanes.builder.append(lanes.columns(), items, {})


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -1.0])
def test_priorities_must_be_finite_and_not_negative(wrong: float) -> None:
    lanes = Lanes(priorities=lambda windows: ones(windows) * np.float32(wrong))
    with pytest.raises(ValueError, match="must be finite and at least 0"):
        [lanes.append() for _ in range(6)]


def test_priorities_must_be_one_per_item() -> None:
    lanes = Lanes(priorities=lambda windows: np.ones(1, dtype=np.float32))
    with pytest.raises(ValueError, match=r"initial priorities have shape \(1,\), must be \(4,\)"):
        [lanes.append() for _ in range(6)]


def test_signature_must_fit() -> None:
    with pytest.raises(SignatureError, match=r"geometry\.tail is 2, must be 3"):
        ChunkBuilder(SIGNATURE, 1, NStepWindows(3), ones)
    columns = tuple(column for column in SIGNATURE.columns if column.name != "age")
    with pytest.raises(SignatureError, match="step column 'age' of uint16"):
        ChunkBuilder(Signature(columns, SIGNATURE.geometry), 1, NStepWindows(2), ones)


def test_the_actor_side_imports_no_torch() -> None:
    code = (
        "import sys, apexrl.experience.chunk_builder, apexrl.experience.decoding, apexrl.experience.stacking, "
        "apexrl.experience.rows, apexrl.experience.importance; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0

"""A small table and its chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from apexrl.types import (
    Chunk,
    Codec,
    ColumnSpec,
    Geometry,
    InitialPriority,
    SelectorConfig,
    Signature,
    TableConfig,
)

CONTEXT, STARTS, TAIL = 3, 4, 3
OBSERVATION_BYTES = 200

SIGNATURE = Signature(
    columns=(
        ColumnSpec("kind", "uint8"),
        ColumnSpec("reward", "float32"),
        ColumnSpec("observation", "uint8", (OBSERVATION_BYTES,), codec=Codec.LZ4),
    ),
    geometry=Geometry(CONTEXT, STARTS, TAIL),
    stack=4,
)


def _table_config(**changes: Any) -> TableConfig:
    fields: dict[str, Any] = {
        "name": "replay",
        "signature": SIGNATURE,
        "selector": SelectorConfig(),
        "capacity_items": 40,
        "budget_bytes": 1 << 20,
        "initial_priority": InitialPriority.ACTOR,
    }
    return TableConfig(**(fields | changes))


def _make_chunk(
    lengths: tuple[int, ...] = (3, 3, 3, 3),
    priorities: tuple[float, ...] | float = 1.0,
    rows: int | None = None,
    mark: int = 0,
    compressed_bytes: int = 60,
) -> Chunk:
    starts = len(lengths)
    rows = CONTEXT + starts + TAIL if rows is None else rows
    return Chunk(
        rows=rows,
        starts=starts,
        lengths=np.array(lengths, np.uint16),
        prefixes=np.zeros(starts, np.uint16),
        priorities=np.broadcast_to(np.asarray(priorities, np.float32), starts).copy(),
        blocks=(bytes([mark % 256]) * rows, bytes(4 * rows), bytes([mark % 256]) * compressed_bytes),
    )


@pytest.fixture(scope="session")
def table_config() -> Callable[..., TableConfig]:
    return _table_config


@pytest.fixture(scope="session")
def make_chunk() -> Callable[..., Chunk]:
    return _make_chunk

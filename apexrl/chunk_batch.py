"""Many chunks at once, column by column, as messages carry them and tables file them.

Work per chunk is what inserting costs; here it is done per message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from apexrl.types import Chunk

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ChunkBatch:
    """n chunks of one signature with C columns; s = sum(starts). Arrays are read-only to whoever gets a batch."""

    rows: Ints
    """[n] of each chunk."""
    starts: Ints
    """[n] start rows of each."""
    lengths: npt.NDArray[np.uint16]
    """[s], as ``prefixes`` and ``priorities``: see :class:`~apexrl.types.Chunk`, one chunk behind the other."""
    prefixes: npt.NDArray[np.uint16]
    priorities: npt.NDArray[np.float32]
    data: tuple[bytes, ...]
    """[C] the n blocks of each column, one behind the other."""
    sizes: Ints
    """[C, n] bytes of each block."""

    @classmethod
    def of(cls, chunks: Sequence[Chunk]) -> ChunkBatch:
        """The batch of some chunks, at least one."""
        blocks = list(zip(*(chunk.blocks for chunk in chunks), strict=True))
        return cls(
            rows=np.array([chunk.rows for chunk in chunks], np.int64),
            starts=np.array([chunk.starts for chunk in chunks], np.int64),
            lengths=np.concatenate([chunk.lengths for chunk in chunks]),
            prefixes=np.concatenate([chunk.prefixes for chunk in chunks]),
            priorities=np.concatenate([chunk.priorities for chunk in chunks]),
            data=tuple(b"".join(column) for column in blocks),
            sizes=np.array([[len(block) for block in column] for column in blocks], np.int64),
        )

    def __len__(self) -> int:
        return self.rows.size

    @cached_property
    def first_starts(self) -> Ints:
        """[n + 1] where each chunk's start rows begin in ``lengths`` and its neighbours."""
        return np.append(0, np.cumsum(self.starts))

    @cached_property
    def items_before(self) -> Ints:
        """[n + 1] items of the chunks before each one."""
        return np.append(0, np.cumsum(self.lengths > 0))[self.first_starts]

    @cached_property
    def first_bytes(self) -> Ints:
        """[C, n + 1] where each block begins in its column's ``data``."""
        return np.concatenate([np.zeros((len(self.data), 1), np.int64), np.cumsum(self.sizes, axis=1)], axis=1)

    def part(self, begin: int, end: int) -> ChunkBatch:
        """The chunks from ``begin`` to before ``end``."""
        first, last = int(self.first_starts[begin]), int(self.first_starts[end])
        edges = self.first_bytes[:, [begin, end]].tolist()
        return ChunkBatch(
            rows=self.rows[begin:end],
            starts=self.starts[begin:end],
            lengths=self.lengths[first:last],
            prefixes=self.prefixes[first:last],
            priorities=self.priorities[first:last],
            data=tuple(data[a:b] for data, (a, b) in zip(self.data, edges, strict=True)),
            sizes=self.sizes[:, begin:end],
        )

    def chosen(self, numbers: Ints) -> ChunkBatch:
        """The chunks of these numbers, in their order; at least one."""
        return ChunkBatch.of([self.chunk(int(number)) for number in numbers])

    def blocks(self, chosen: Ints) -> list[list[bytes]]:
        """[C][k] blocks of the ``chosen`` [k] chunks."""
        begins = self.first_bytes[:, chosen]
        ends = begins + self.sizes[:, chosen]
        return [
            [data[a:b] for a, b in zip(column_begins, column_ends, strict=True)]
            for data, column_begins, column_ends in zip(self.data, begins.tolist(), ends.tolist(), strict=True)
        ]

    def chunk(self, i: int) -> Chunk:
        """One of them."""
        items = slice(int(self.first_starts[i]), int(self.first_starts[i + 1]))
        return Chunk(
            rows=int(self.rows[i]),
            starts=int(self.starts[i]),
            lengths=self.lengths[items],
            prefixes=self.prefixes[items],
            priorities=self.priorities[items],
            blocks=tuple(column[0] for column in self.blocks(np.array([i]))),
        )

    def chunks(self) -> list[Chunk]:
        """All of them."""
        return [self.chunk(i) for i in range(len(self))]

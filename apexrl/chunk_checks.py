"""What a chunk must be before anything of it is stored or decoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from apexrl.chunk_batch import ChunkBatch
from apexrl.types import Array, Chunk, Codec, Scope, Signature, SignatureError

_UINT16 = np.dtype(np.uint16)
_FLOAT32 = np.dtype(np.float32)

Ints = npt.NDArray[np.int64]
Size = TypeVar("Size", int, Ints)


def largest_block_bytes(raw_bytes: Size) -> Size:
    """Most bytes that columns of ``raw_bytes`` may take when lz4 has encoded them: the bound of its block format."""
    return raw_bytes + raw_bytes // 255 + 16


class ChunkChecker:
    """Checks chunks against a signature."""

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        geometry = signature.geometry
        self._geometry = geometry
        columns = signature.columns
        self._is_raw = np.array([column.codec is Codec.RAW for column in columns])
        self._per_row = np.array([column.scope is Scope.STEP for column in columns])
        self._value_bytes = np.array([column.value_bytes for column in columns], np.int64)
        #: Most bytes that the blocks of one chunk may have together.
        self.largest_payload_bytes = int(self._block_bounds(geometry.rows, geometry.starts)[1].sum())

    def check(self, chunk: Chunk) -> None:
        """Raise SignatureError, naming the field, unless ``chunk`` agrees with the signature."""
        self.check_shape(chunk.rows, chunk.starts, [len(block) for block in chunk.blocks])
        g = self._geometry
        self._check_array("lengths", chunk.lengths, _UINT16, chunk.starts)
        self._check_array("prefixes", chunk.prefixes, _UINT16, chunk.starts)
        self._check_array("priorities", chunk.priorities, _FLOAT32, chunk.starts)
        largest = self._largest(chunk.rows, chunk.starts)
        if np.count_nonzero(chunk.lengths > largest):
            j = int(np.flatnonzero(chunk.lengths > largest)[0])
            raise SignatureError(
                f"chunk.lengths[{j}] is {chunk.lengths[j]}, must be at most {largest[j]}, so that the window ends in "
                f"the chunk's {chunk.rows} rows and within {g.tail} rows"
            )
        if np.count_nonzero(chunk.prefixes > g.context):
            j = int(np.flatnonzero(chunk.prefixes > g.context)[0])
            raise SignatureError(f"chunk.prefixes[{j}] is {chunk.prefixes[j]}, must be at most {g.context}")
        check_priorities("chunk.priorities", chunk.priorities)

    def check_batch(self, batch: ChunkBatch) -> None:
        """:meth:`check` of each chunk, in a few array operations for all of them if all are well."""
        self.check_shapes(batch)
        self.check_items(batch)

    def check_shape(self, rows: int, starts: int, sizes: Sequence[int]) -> None:
        """The part of :meth:`check` that decoding relies on: the sizes of a chunk and of its blocks."""
        self._check_counts(rows, starts)
        self._check_sizes(rows, starts, sizes)

    def check_shapes(self, batch: ChunkBatch) -> None:
        """:meth:`check_shape` of each chunk, and that each column has the bytes of its blocks and no more."""
        self.check_rows(batch.rows, batch.starts)
        self.check_blocks(batch)

    def check_rows(self, rows: Ints, starts: Ints) -> None:
        """The part of :meth:`check_shapes` that says how much the chunks may hold: their rows and start rows [n]."""
        g = self._geometry
        behind = rows - g.context - starts
        wrong = (starts < 1) | (starts > g.starts) | (behind < 0) | (behind > g.tail)
        for i in np.flatnonzero(wrong)[:1].tolist():
            self._check_counts(int(rows[i]), int(starts[i]))

    def check_blocks(self, batch: ChunkBatch) -> None:
        """The rest of :meth:`check_shapes`."""
        if len(batch) == 0:
            return
        if len(batch.data) != len(self.signature.columns):
            raise SignatureError(f"chunks have {len(batch.data)} columns, must have {len(self.signature.columns)}")
        least, most = self._block_bounds(batch.rows, batch.starts)
        wrong = ((batch.sizes < least) | (batch.sizes > most)).any(axis=0)
        for i in np.flatnonzero(wrong)[:1].tolist():
            self._check_sizes(int(batch.rows[i]), int(batch.starts[i]), batch.sizes[:, i].tolist())
        totals = batch.sizes.sum(axis=1).tolist()
        for column, data, total in zip(self.signature.columns, batch.data, totals, strict=True):
            if len(data) != total:
                raise SignatureError(
                    f"column {column.name!r} has {len(data)} bytes of data, must have {total}, as its blocks"
                )

    def check_items(self, batch: ChunkBatch) -> None:
        """The part of :meth:`check_batch` that :meth:`check_shapes` is not; that must have been done."""
        if len(batch) and not self._items_agree(batch):
            for chunk in batch.chunks():
                self.check(chunk)

    def _check_counts(self, rows: int, starts: int) -> None:
        g = self._geometry
        if not 1 <= starts <= g.starts:
            raise SignatureError(f"chunk.starts is {starts}, must be in [1, {g.starts}]")
        low, high = g.context + starts, g.context + starts + g.tail
        if not low <= rows <= high:
            raise SignatureError(f"chunk.rows is {rows}, must be in [{low}, {high}] with {starts} start rows")

    def _check_sizes(self, rows: int, starts: int, sizes: Sequence[int]) -> None:
        least, most = (bounds[:, 0].tolist() for bounds in self._block_bounds(rows, starts))
        if len(sizes) != len(least):
            raise SignatureError(f"chunk.blocks has {len(sizes)} columns, must have {len(least)}")
        for column, size, low, high in zip(self.signature.columns, sizes, least, most, strict=True):
            if not low <= size <= high:
                allowed = str(low) if low == high else f"between {low} and {high} ({column.codec})"
                raise SignatureError(f"chunk.blocks[{column.name!r}] has {size} bytes, must have {allowed}")

    def _items_agree(self, batch: ChunkBatch) -> bool:
        g, rows, starts = self._geometry, batch.rows, batch.starts
        # Rows of the chunk that lie behind each start row.
        left = np.repeat(rows + batch.first_starts[:-1], starts) - np.arange(batch.lengths.size) - 1 - g.context
        if (batch.lengths > np.minimum(left, g.tail)).any() or batch.prefixes.max() > g.context:
            return False
        # The minimum of numbers with a NaN among them is a NaN, which is not 0 or above.
        return bool(batch.priorities.min() >= 0.0 and batch.priorities.max() < np.inf)

    def _block_bounds(self, rows: Ints | int, starts: Ints | int) -> tuple[Ints, Ints]:
        """Least and most bytes [C, n] of the blocks of n chunks, or [C, 1] of one, of so many rows and start rows."""
        raw = np.where(self._per_row[:, None], rows, starts) * self._value_bytes[:, None]
        is_raw = self._is_raw[:, None]
        return np.where(is_raw, raw, 1), np.where(is_raw, raw, largest_block_bytes(raw))

    @staticmethod
    def _check_array(name: str, array: Array, dtype: np.dtype[Any], starts: int) -> None:
        if array.dtype != dtype or array.shape != (starts,):
            raise SignatureError(
                f"chunk.{name} is {array.dtype} {array.shape}, must be {dtype} ({starts},), one per start row"
            )

    def _largest(self, rows: int, starts: int) -> npt.NDArray[np.uint16]:
        """Longest window at each start row: it may neither pass the chunk's last row nor the tail."""
        largest = np.minimum(rows - 1 - self._geometry.context - np.arange(starts), self._geometry.tail)
        return largest.astype(np.uint16)


def check_priorities(name: str, priorities: npt.NDArray[np.floating]) -> None:
    """Raise SignatureError unless all ``priorities`` are finite and >= 0: one NaN would poison every draw."""
    # The minimum of numbers with a NaN among them is a NaN, which is not 0 or above.
    if priorities.size and not (priorities.min() >= 0.0 and priorities.max() < np.inf):
        i = int(np.flatnonzero(~((priorities >= 0.0) & (priorities < np.inf)))[0])
        raise SignatureError(f"{name}[{i}] is {priorities[i]}, must be finite and 0 or above")

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
        if len(batch) and not (self._shapes_agree(batch) and self._items_agree(batch)):
            self.check_shapes(batch)
            for chunk in batch.chunks():
                self.check(chunk)

    def check_shape(self, rows: int, starts: int, sizes: Sequence[int]) -> None:
        """The part of :meth:`check` that decoding relies on: the sizes of a chunk and of its blocks."""
        g = self._geometry
        if not 1 <= starts <= g.starts:
            raise SignatureError(f"chunk.starts is {starts}, must be in [1, {g.starts}]")
        low, high = g.context + starts, g.context + starts + g.tail
        if not low <= rows <= high:
            raise SignatureError(f"chunk.rows is {rows}, must be in [{low}, {high}] with {starts} start rows")
        least, most = (bounds[:, 0].tolist() for bounds in self._block_bounds(rows, starts))
        if len(sizes) != len(least):
            raise SignatureError(f"chunk.blocks has {len(sizes)} columns, must have {len(least)}")
        for column, size, low, high in zip(self.signature.columns, sizes, least, most, strict=True):
            if not low <= size <= high:
                allowed = str(low) if low == high else f"between {low} and {high} ({column.codec})"
                raise SignatureError(f"chunk.blocks[{column.name!r}] has {size} bytes, must have {allowed}")

    def check_shapes(self, batch: ChunkBatch) -> None:
        """:meth:`check_shape` of each chunk, and that each column has the bytes of its blocks and no more."""
        if len(batch) == 0 or self._shapes_agree(batch):
            return
        for rows, starts, sizes in zip(batch.rows.tolist(), batch.starts.tolist(), batch.sizes.T.tolist(), strict=True):
            self.check_shape(rows, starts, sizes)
        for column, data, sizes in zip(self.signature.columns, batch.data, batch.sizes, strict=True):
            if len(data) != sizes.sum():
                raise SignatureError(
                    f"column {column.name!r} has {len(data)} bytes of data, must have {sizes.sum()}, as its blocks"
                )

    def _shapes_agree(self, batch: ChunkBatch) -> bool:
        g, rows, starts = self._geometry, batch.rows, batch.starts
        if len(batch.data) != len(self.signature.columns):
            return False
        behind = rows - g.context - starts
        if starts.min() < 1 or starts.max() > g.starts or behind.min() < 0 or behind.max() > g.tail:
            return False
        least, most = self._block_bounds(rows, starts)
        if not ((batch.sizes >= least) & (batch.sizes <= most)).all():
            return False
        totals: list[int] = batch.sizes.sum(axis=1).tolist()
        return [len(data) for data in batch.data] == totals

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

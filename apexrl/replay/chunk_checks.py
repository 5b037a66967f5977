"""What a chunk must be before anything of it is stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from apexrl.types import Array, Chunk, Codec, Signature, SignatureError

_UINT16 = np.dtype(np.uint16)
_FLOAT32 = np.dtype(np.float32)


def largest_block_bytes(raw_bytes: int, codec: Codec) -> int:
    """Most bytes that a column of ``raw_bytes`` may take when encoded (for lz4 the bound of its block format)."""
    return raw_bytes if codec is Codec.RAW else raw_bytes + raw_bytes // 255 + 16


class ChunkChecker:
    """Checks chunks against a signature. Few array operations: this runs for every chunk that arrives."""

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        geometry = signature.geometry
        self._geometry = geometry
        self._largest_lengths = self._largest(geometry.rows, geometry.starts)
        raw = [signature.block_bytes(c, geometry.rows, geometry.starts) for c in signature.columns]
        self._full_largest = [largest_block_bytes(b, c.codec) for b, c in zip(raw, signature.columns, strict=True)]
        self._full_least = [b if c.codec is Codec.RAW else 1 for b, c in zip(raw, signature.columns, strict=True)]

    @property
    def largest_payload_bytes(self) -> int:
        """Most bytes that the blocks of one chunk may have together."""
        return sum(self._full_largest)

    def check(self, chunk: Chunk) -> None:
        """Raise SignatureError, naming the field, unless ``chunk`` agrees with the signature."""
        g = self._geometry
        if not 1 <= chunk.starts <= g.starts:
            raise SignatureError(f"chunk.starts is {chunk.starts}, must be in [1, {g.starts}]")
        low, high = g.context + chunk.starts, g.context + chunk.starts + g.tail
        if not low <= chunk.rows <= high:
            raise SignatureError(
                f"chunk.rows is {chunk.rows}, must be in [{low}, {high}] with {chunk.starts} start rows"
            )
        self._check_array("lengths", chunk.lengths, _UINT16, chunk.starts)
        self._check_array("prefixes", chunk.prefixes, _UINT16, chunk.starts)
        self._check_array("priorities", chunk.priorities, _FLOAT32, chunk.starts)
        if chunk.rows == g.rows and chunk.starts == g.starts:
            largest = self._largest_lengths
            least_bytes, most_bytes = self._full_least, self._full_largest
        else:
            largest = self._largest(chunk.rows, chunk.starts)
            columns = self.signature.columns
            raw = [self.signature.block_bytes(c, chunk.rows, chunk.starts) for c in columns]
            least_bytes = [b if c.codec is Codec.RAW else 1 for b, c in zip(raw, columns, strict=True)]
            most_bytes = [largest_block_bytes(b, c.codec) for b, c in zip(raw, columns, strict=True)]
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
        self._check_blocks(chunk.blocks, least_bytes, most_bytes)

    def _check_blocks(self, blocks: tuple[bytes, ...], least: list[int], most: list[int]) -> None:
        if len(blocks) != len(least):
            raise SignatureError(f"chunk.blocks has {len(blocks)} columns, must have {len(least)}")
        for i, block in enumerate(blocks):
            if not least[i] <= len(block) <= most[i]:
                column = self.signature.columns[i]
                allowed = str(least[i]) if least[i] == most[i] else f"between {least[i]} and {most[i]} ({column.codec})"
                raise SignatureError(f"chunk.blocks[{column.name!r}] has {len(block)} bytes, must have {allowed}")

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

"""What a chunk must be before anything of it is stored."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from apexrl.types import Array, Chunk, Codec, Signature, SignatureError


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
        self._full_raw_bytes = raw
        self._is_raw = [column.codec is Codec.RAW for column in signature.columns]

    @property
    def largest_payload_bytes(self) -> int:
        """Most bytes that the blocks of one chunk may have together."""
        return sum(
            largest_block_bytes(raw, column.codec)
            for raw, column in zip(self._full_raw_bytes, self.signature.columns, strict=True)
        )

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
        for name, dtype in (("lengths", np.uint16), ("prefixes", np.uint16), ("priorities", np.float32)):
            self._check_array(name, getattr(chunk, name), dtype, chunk.starts)
        if chunk.rows == g.rows and chunk.starts == g.starts:
            largest = self._largest_lengths
            raw_bytes = self._full_raw_bytes
        else:
            largest = self._largest(chunk.rows, chunk.starts)
            raw_bytes = [self.signature.block_bytes(c, chunk.rows, chunk.starts) for c in self.signature.columns]
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
        self._check_blocks(chunk.blocks, raw_bytes)

    def _check_blocks(self, blocks: tuple[bytes, ...], raw_bytes: list[int]) -> None:
        if len(blocks) != len(raw_bytes):
            raise SignatureError(f"chunk.blocks has {len(blocks)} columns, must have {len(raw_bytes)}")
        for block, raw, is_raw, column in zip(blocks, raw_bytes, self._is_raw, self.signature.columns, strict=True):
            size = len(block)
            if is_raw:
                if size != raw:
                    raise SignatureError(f"chunk.blocks[{column.name!r}] has {size} bytes, must have {raw}")
            elif not 1 <= size <= largest_block_bytes(raw, Codec.LZ4):
                raise SignatureError(
                    f"chunk.blocks[{column.name!r}] has {size} bytes, must have between 1 and "
                    f"{largest_block_bytes(raw, Codec.LZ4)} (lz4 of {raw} bytes)"
                )

    @staticmethod
    def _check_array(name: str, array: Array, dtype: type[np.generic], starts: int) -> None:
        if array.dtype != dtype or array.shape != (starts,):
            raise SignatureError(
                f"chunk.{name} is {array.dtype} {array.shape}, must be {np.dtype(dtype)} ({starts},), one per start row"
            )

    def _largest(self, rows: int, starts: int) -> npt.NDArray[np.int64]:
        """Longest window at each start row: it may neither pass the chunk's last row nor the tail."""
        return np.minimum(rows - 1 - self._geometry.context - np.arange(starts), self._geometry.tail)


def check_priorities(name: str, priorities: npt.NDArray[np.floating]) -> None:
    """Raise SignatureError unless all ``priorities`` are finite and >= 0: one NaN would poison every draw."""
    good = (priorities >= 0.0) & (priorities < np.inf)
    if np.count_nonzero(good) != priorities.size:
        i = int(np.flatnonzero(~good)[0])
        raise SignatureError(f"{name}[{i}] is {priorities[i]}, must be finite and 0 or above")

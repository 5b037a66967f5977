"""How a column's values of one chunk become bytes and back. No sizes travel: they follow from the signature."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import lz4.block  # type: ignore[import-untyped]
import numpy as np

from apexrl.chunk_checks import largest_block_bytes
from apexrl.types import Array, Codec, ColumnSpec, Scope, SignatureError


def wire_dtype(column: ColumnSpec) -> np.dtype[np.generic]:
    """The column's element type in the byte order of blocks, which is little-endian on every machine."""
    return _little_endian(column.dtype)


@functools.cache
def _little_endian(dtype: str) -> np.dtype[np.generic]:
    return np.dtype(dtype).newbyteorder("<")


def encode_block(column: ColumnSpec, values: Array) -> bytes:
    """Encode the values [N, *column.shape] of one chunk, which must already have the column's element type."""
    values = np.ascontiguousarray(values, dtype=wire_dtype(column))
    if column.codec is Codec.LZ4:
        return bytes(lz4.block.compress(values.data, store_size=False))
    return values.tobytes()


def encode_blocks(column: ColumnSpec, values: Array, counts: Sequence[int]) -> list[bytes]:
    """Encode the first ``counts[l]`` of the values [L, N, *column.shape] of each lane: :func:`encode_block` of each.

    Raw columns are copied once for all lanes.
    """
    if column.codec is not Codec.RAW:
        return [encode_block(column, lane[:count]) for lane, count in zip(values, counts, strict=True)]
    data = np.ascontiguousarray(values, dtype=wire_dtype(column)).tobytes()
    stride, size = values.shape[1] * column.value_bytes, column.value_bytes
    return [data[lane * stride : lane * stride + count * size] for lane, count in enumerate(counts)]


def decode_bytes(column: ColumnSpec, num_values: int, block: bytes) -> bytes:
    """The uncompressed bytes of ``num_values`` values, exactly that many.

    The block is never asked how large it will be: a forged one cannot allocate more than the signature allows.

    Raises:
        SignatureError: the block does not decode to the size that the signature gives.
    """
    expected = column.value_bytes * num_values
    if column.codec is Codec.RAW:
        if len(block) != expected:
            raise SignatureError(f"column {column.name!r}: block has {len(block)} bytes, must be {expected}")
        return block
    longest = largest_block_bytes(expected)
    if not 0 < len(block) <= longest:
        raise SignatureError(
            f"column {column.name!r}: lz4 block has {len(block)} bytes, must be in [1, {longest}] "
            f"for {expected} bytes of data"
        )
    try:
        data = bytes(lz4.block.decompress(block, uncompressed_size=expected))
    except lz4.block.LZ4BlockError as error:
        raise SignatureError(
            f"column {column.name!r}: lz4 block does not decode to {expected} bytes: {error}"
        ) from error
    if len(data) != expected:
        raise SignatureError(f"column {column.name!r}: lz4 block decodes to {len(data)} bytes, must be {expected}")
    return data


def decode_block(column: ColumnSpec, rows: int, starts: int, block: bytes) -> Array:
    """The values [rows or starts, *column.shape] of one chunk, read-only; errors as :func:`decode_bytes`."""
    num_values = rows if column.scope is Scope.STEP else starts
    data = decode_bytes(column, num_values, block)
    return np.frombuffer(data, dtype=wire_dtype(column)).reshape(num_values, *column.shape)

"""Chunks back to arrays. Whatever does not agree with the signature to the byte is refused, naming the field."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from apexrl.chunk_batch import ChunkBatch
from apexrl.experience.codec import decode_block
from apexrl.types import Array, Codec, Scope, Signature, SignatureError


def check_chunk_shape(signature: Signature, rows: int, starts: int, num_blocks: int) -> None:
    """Check a chunk's row counts and number of blocks against the signature.

    Raises:
        SignatureError: one of them is out of range; the message names it.
    """
    geometry = signature.geometry
    if not 1 <= starts <= geometry.starts:
        raise SignatureError(f"chunk.starts is {starts}, must be in [1, {geometry.starts}]")
    low = geometry.context + starts
    if not low <= rows <= low + geometry.tail:
        raise SignatureError(
            f"chunk.rows is {rows}, must be in [{low}, {low + geometry.tail}] for {starts} start rows "
            f"(context {geometry.context}, tail at most {geometry.tail})"
        )
    if num_blocks != len(signature.columns):
        raise SignatureError(f"chunk has {num_blocks} blocks, must be one for each of {len(signature.columns)} columns")


def check_chunks_shape(signature: Signature, chunks: ChunkBatch) -> None:
    """Check row counts, number of blocks and sizes of raw blocks of many chunks against the signature.

    Raises:
        SignatureError: one of them is wrong; the message names it.
    """
    geometry, rows, starts = signature.geometry, chunks.rows, chunks.starts
    low = geometry.context + starts
    wrong = (starts < 1) | (starts > geometry.starts) | (rows < low) | (rows > low + geometry.tail)
    if wrong.any() or len(chunks.data) != len(signature.columns):
        i = int(np.flatnonzero(wrong)[0]) if wrong.any() else 0
        check_chunk_shape(signature, int(rows[i]), int(starts[i]), len(chunks.data))
    for column, data, sizes in zip(signature.columns, chunks.data, chunks.sizes, strict=True):
        expected = (rows if column.scope is Scope.STEP else starts) * column.value_bytes
        if column.codec is Codec.RAW and (sizes != expected).any():
            i = int(np.flatnonzero(sizes != expected)[0])
            raise SignatureError(f"column {column.name!r}: block has {sizes[i]} bytes, must be {expected[i]}")
        if sizes.sum() != len(data):
            raise SignatureError(f"column {column.name!r}: {len(data)} bytes of data, must be {sizes.sum()}")


def decode_chunk(signature: Signature, rows: int, starts: int, blocks: Sequence[bytes]) -> dict[str, Array]:
    """Decode all columns: name -> [rows, ...] of step columns, [starts, ...] of item columns, read-only.

    Raises:
        SignatureError: the chunk does not agree with the signature.
    """
    check_chunk_shape(signature, rows, starts, len(blocks))
    return {
        column.name: decode_block(column, rows, starts, block)
        for column, block in zip(signature.columns, blocks, strict=True)
    }

"""Chunks back to arrays. Whatever does not agree with the signature to the byte is refused, naming the field."""

from __future__ import annotations

from collections.abc import Sequence

from apexrl.experience.codec import decode_block
from apexrl.types import Array, Signature, SignatureError


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

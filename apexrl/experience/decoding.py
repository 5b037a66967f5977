"""Chunks back to arrays. Whatever does not agree with the signature to the byte is refused, naming the field."""

from __future__ import annotations

from collections.abc import Sequence

from apexrl.chunk_checks import ChunkChecker
from apexrl.experience.codec import decode_block
from apexrl.types import Array, Signature


def decode_chunk(signature: Signature, rows: int, starts: int, blocks: Sequence[bytes]) -> dict[str, Array]:
    """Decode all columns: name -> [rows, ...] of step columns, [starts, ...] of item columns, read-only.

    Raises:
        SignatureError: the chunk does not agree with the signature.
    """
    ChunkChecker(signature).check_shape(rows, starts, [len(block) for block in blocks])
    return {
        column.name: decode_block(column, rows, starts, block)
        for column, block in zip(signature.columns, blocks, strict=True)
    }

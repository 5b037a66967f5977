"""The bytes of a journal: records of chunks, in segments, readable after a crash in the middle of one.

A segment is a header of 8 bytes (magic and format number) and records. A record is a header with the length and the CRC
of what follows, and a chunk with its sequence number in the table and what names it (incarnation and number of the
actor). Integers are little-endian. What does not agree with its CRC is skipped and counted; where not even lengths can
be believed, the rest of the segment is.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from apexrl.types import Chunk

FORMAT = 1
MAGIC = b"APEXJR" + struct.pack("<H", FORMAT)
#: No record is larger: a chunk's message is not either.
MAX_RECORD_BYTES = 64 << 20

_LENGTH = struct.Struct("<II")
#: sequence, inserted, incarnation, number, rows, starts, number of blocks
_FIXED = struct.Struct("<QQ16sQHHH")


class Record(NamedTuple):
    """A chunk as it was stored."""

    sequence: int
    """Counts the table's chunks from 0."""
    inserted: int
    """Items ever inserted into the table, this chunk's included."""
    incarnation: bytes
    """[16] of the actor that sent it."""
    number: int
    """Of the chunk, in the incarnation's count."""
    chunk: Chunk
    """Priorities are those it came with."""


@dataclass
class Damage:
    """What reading had to leave out."""

    records_skipped: int = 0
    """Whole records whose CRC or contents are wrong."""
    bytes_cut: int = 0
    """Behind the last length that could be believed."""


class FormatError(ValueError):
    """The bytes are no segment of a format that this version reads."""


def encode_record(record: Record) -> bytes:
    """The bytes of one record."""
    chunk = record.chunk
    sizes = np.array([len(block) for block in chunk.blocks], np.uint32)
    body = b"".join(
        (
            _FIXED.pack(
                record.sequence,
                record.inserted,
                record.incarnation,
                record.number,
                chunk.rows,
                chunk.starts,
                len(chunk.blocks),
            ),
            chunk.lengths.astype("<u2").tobytes(),
            chunk.prefixes.astype("<u2").tobytes(),
            chunk.priorities.astype("<f4").tobytes(),
            sizes.astype("<u4").tobytes(),
            *chunk.blocks,
        )
    )
    return _LENGTH.pack(len(body), zlib.crc32(body)) + body


def decode_segment(data: bytes, damage: Damage) -> Iterator[Record]:
    """The records of a segment, in order; what cannot be read is added to ``damage``.

    Raises:
        FormatError: not a segment, or of another format.
    """
    if data[: len(MAGIC)] != MAGIC:
        if data[:6] == MAGIC[:6] and len(data) >= len(MAGIC):
            found = struct.unpack_from("<H", data, 6)[0]
            raise FormatError(f"the segment has format {found}, must be {FORMAT}")
        raise FormatError("not a segment of a journal")
    at = len(MAGIC)
    while at < len(data):
        body_at = at + _LENGTH.size
        length, crc = _LENGTH.unpack_from(data, at) if body_at <= len(data) else (0, 0)
        if not _FIXED.size <= length <= min(MAX_RECORD_BYTES, len(data) - body_at):
            damage.bytes_cut += len(data) - at
            return
        body = data[body_at : body_at + length]
        at = body_at + length
        record = _decode_body(body) if zlib.crc32(body) == crc else None
        if record is None:
            damage.records_skipped += 1
        else:
            yield record


def _decode_body(body: bytes) -> Record | None:
    """The record; None if its sizes do not add up."""
    sequence, inserted, incarnation, number, rows, starts, num_blocks = _FIXED.unpack_from(body)
    blocks_at = _FIXED.size + starts * 8 + num_blocks * 4
    if blocks_at > len(body):
        return None
    at = _FIXED.size
    lengths = np.frombuffer(body, "<u2", starts, at)
    prefixes = np.frombuffer(body, "<u2", starts, at + 2 * starts)
    priorities = np.frombuffer(body, "<f4", starts, at + 4 * starts)
    sizes = np.frombuffer(body, "<u4", num_blocks, at + 8 * starts).astype(np.int64)
    ends = blocks_at + np.cumsum(sizes)
    if (int(ends[-1]) if num_blocks else blocks_at) != len(body):
        return None
    blocks = tuple(body[end - size : end] for end, size in zip(ends.tolist(), sizes.tolist(), strict=True))
    chunk = Chunk(
        rows,
        starts,
        lengths.astype(np.uint16),
        prefixes.astype(np.uint16),
        priorities.astype(np.float32),
        blocks,
    )
    return Record(sequence, inserted, incarnation, number, chunk)

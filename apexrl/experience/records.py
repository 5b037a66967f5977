"""How decoded chunks lie in memory: as records, with all columns of a row side by side.

What is gathered is a run of rows. With the columns of a row in one piece a window is one piece too, whatever the number
of columns: one copy on the host, and one kernel on a device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from apexrl.chunk_batch import ChunkBatch
from apexrl.compiled import compiled, readonly, types
from apexrl.experience.codec import decode_bytes
from apexrl.types import Codec, ColumnSpec, Scope, Signature

#: Records are copied word by word.
WORD_BYTES = 8
#: Vector loads of a device want no more than this.
_LARGEST_ALIGNMENT = 16

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]


@compiled(
    (
        readonly(types.uint8),
        types.int64[::1],
        types.int64[::1],
        types.int64,
        types.uint8[::1],
        types.int64[::1],
        types.int64,
    )
)
def _scatter(
    values: Bytes, begins: Ints, counts: Ints, value_bytes: int, memory: Bytes, firsts: Ints, record_bytes: int
) -> None:
    """Copy ``counts[i]`` values from ``begins[i]`` on to every ``record_bytes`` of ``memory`` from ``firsts[i]`` on."""
    for i in range(begins.size):
        source, target = begins[i], firsts[i]
        for _ in range(counts[i]):
            for byte in range(value_bytes):
                memory[target + byte] = values[source + byte]
            source += value_bytes
            target += record_bytes


@dataclass(frozen=True)
class Record:
    """The columns of one scope side by side: those with the widest alignment first, so that little is padding."""

    columns: tuple[ColumnSpec, ...]
    begins: tuple[int, ...]
    """Byte at which each column begins."""
    num_bytes: int
    """Of a record, a whole number of words; 0 if there are no columns."""

    @classmethod
    def of(cls, columns: list[ColumnSpec]) -> Record:
        """The record of ``columns``."""
        ordered = sorted(columns, key=_alignment, reverse=True)
        begins, end = [], 0
        for column in ordered:
            begin = _up(end, _alignment(column))
            begins.append(begin)
            end = begin + column.value_bytes
        return cls(tuple(ordered), tuple(begins), _up(end, max([WORD_BYTES, *map(_alignment, columns)])))

    @property
    def num_words(self) -> int:
        return self.num_bytes // WORD_BYTES


def _alignment(column: ColumnSpec) -> int:
    """Bytes by whose multiples a column's values may lie."""
    return math.gcd(column.value_bytes, _LARGEST_ALIGNMENT)


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


class RecordLayout:
    """Where everything of a signature's pages lies."""

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        self.step = Record.of([column for column in signature.columns if column.scope is Scope.STEP])
        """Of each row."""
        self.item = Record.of([column for column in signature.columns if column.scope is Scope.ITEM])
        """Of each start row."""

    @property
    def page_step_bytes(self) -> int:
        """Bytes of the rows of a full chunk."""
        return self.signature.geometry.rows * self.step.num_bytes

    @property
    def page_item_bytes(self) -> int:
        """Bytes of the start rows of a full chunk."""
        return self.signature.geometry.starts * self.item.num_bytes

    @property
    def page_bytes(self) -> int:
        """Bytes of a decoded full chunk."""
        return self.page_step_bytes + self.page_item_bytes

    def decode(
        self, chunks: ChunkBatch, begin: int, end: int, steps: Bytes, step_firsts: Ints, items: Bytes, item_firsts: Ints
    ) -> None:
        """Decode the chunks from ``begin`` to before ``end`` to pages; rows that a short chunk lacks become zeros.

        Args:
            chunks: of the signature.
            begin: number of the first.
            end: number behind the last.
            steps: memory [bytes] of the pages' rows.
            step_firsts: [end - begin] byte of ``steps`` at which the page of each chunk begins.
            items: memory [bytes] of the pages' start rows.
            item_firsts: [end - begin] likewise.

        Raises:
            SignatureError: a chunk does not agree with the signature. The pages may hold anything then.
        """
        geometry = self.signature.geometry
        for record, counts, full, memory, firsts in (
            (self.step, chunks.rows[begin:end], geometry.rows, steps, step_firsts),
            (self.item, chunks.starts[begin:end], geometry.starts, items, item_firsts),
        ):
            _clear_behind(counts, full, memory, firsts, record.num_bytes)
            for column, place in zip(record.columns, record.begins, strict=True):
                number = self.signature.columns.index(column)
                data, edges = chunks.data[number], chunks.first_bytes[number, begin : end + 1]
                if column.codec is Codec.RAW:
                    values, begins = np.frombuffer(data, dtype=np.uint8), edges[:-1]
                    _scatter(values, begins, counts, column.value_bytes, memory, firsts + place, record.num_bytes)
                else:
                    _decode_blocks(column, data, edges.tolist(), counts, memory, firsts, record.num_bytes, place)


def _clear_behind(counts: Ints, full: int, memory: Bytes, firsts: Ints, record_bytes: int) -> None:
    """Zero the records that chunks of ``counts`` records lack of ``full``."""
    for i in np.flatnonzero(counts < full).tolist():
        first = int(firsts[i])
        memory[first + int(counts[i]) * record_bytes : first + full * record_bytes] = 0


def _decode_blocks(
    column: ColumnSpec,
    data: bytes,
    edges: list[int],
    counts: Ints,
    memory: Bytes,
    firsts: Ints,
    record_bytes: int,
    place: int,
) -> None:
    """Decode blocks ``data[edges[i] : edges[i + 1]]`` of ``counts[i]`` values each to their places in the records."""
    size = column.value_bytes
    for i, (count, first) in enumerate(zip(counts.tolist(), firsts.tolist(), strict=True)):
        block = decode_bytes(column, count, data[edges[i] : edges[i + 1]])
        records = memory[first : first + count * record_bytes].reshape(count, record_bytes)
        records[:, place : place + size] = np.frombuffer(block, dtype=np.uint8).reshape(count, size)

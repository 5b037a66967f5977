"""The learner's copy of replay pages, and the gather of windows into batches; here in host memory.

One thread applies replies in their order: put the new chunks, then gather the reply's windows *before the next reply is
touched*. Nothing refers to slots after that, so a slot may be overwritten at any later time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numba
import numpy as np
import numpy.typing as npt

from apexrl.experience.batch import BatchBuffer
from apexrl.experience.codec import decode_bytes
from apexrl.experience.decoding import check_chunk_shape
from apexrl.types import ColumnSpec, Scope, Signature

_types: Any = numba.types
_WORDS = (_types.uint8, _types.uint16, _types.uint32, _types.uint64)


# Compiled at import, for every word that there is, and not within the first batch.
@numba.njit([(word[::1], _types.int64[::1], word[:, ::1], _types.int64) for word in _WORDS], nogil=True, cache=True)
def _copy_windows(
    source: npt.NDArray[np.unsignedinteger],
    first_words: npt.NDArray[np.int64],
    out: npt.NDArray[np.unsignedinteger],
    offset: int,
) -> None:
    """Copy ``out.shape[1]`` words of flat ``source`` from each of ``first_words`` to rows ``offset`` and following."""
    width = out.shape[1]
    for i in range(first_words.size):
        begin = first_words[i]
        out[offset + i, :] = source[begin : begin + width]


def _word(value_bytes: int) -> np.dtype[np.unsignedinteger]:
    """The widest word that divides a value. Copying 84x84 frames by 8 bytes is five times as fast as byte by byte."""
    return np.dtype(f"u{math.gcd(value_bytes, 8)}")


class Mirror(Protocol):
    """Decoded pages, one per slot. Not thread-safe: one thread puts and gathers."""

    @property
    def num_slots(self) -> int: ...

    @property
    def num_bytes(self) -> int:
        """Bytes of all pages."""
        ...

    def put(self, slot: int, rows: int, starts: int, blocks: Sequence[bytes]) -> None:
        """Decode a chunk into a slot; rows that a short chunk does not have become zeros.

        Raises:
            SignatureError: the chunk does not agree with the signature; the slot is as before.
            ValueError: there is no such slot.
        """
        ...

    def gather(
        self,
        slots: npt.NDArray[np.integer],
        start_rows: npt.NDArray[np.integer],
        lengths: npt.NDArray[np.integer],
        prefixes: npt.NDArray[np.integer],
        out: BatchBuffer,
        offset: int = 0,
    ) -> None:
        """Copy the windows of n items to rows ``offset`` .. ``offset + n - 1`` of a batch buffer.

        A window is the rows ``start - context`` to ``start + tail`` of its page. Also writes ``out.lengths`` and
        ``out.prefixes``.

        Args:
            slots: [n] of the items' pages.
            start_rows: [n] row of the page at which the item starts, context rows included.
            lengths: [n] window lengths k, at least 1.
            prefixes: [n] rows before the start row that belong to the item.
            out: made for the same signature, on the mirror's device.
            offset: first row to write.

        Raises:
            ValueError: an item lies outside its page, its slot is empty, or the batch is too small. Nothing was
                written.
        """
        ...


class DecodedColumn(NamedTuple):
    """One column of a chunk."""

    column: ColumnSpec
    num_values: int
    data: bytes


class SlotBook:
    """What each slot of a mirror holds, and the checks of what is put and gathered."""

    def __init__(self, signature: Signature, num_slots: int) -> None:
        if num_slots < 1:
            raise ValueError(f"num_slots is {num_slots}, must be at least 1")
        self.signature = signature
        self.num_slots = num_slots
        self._rows = np.zeros(num_slots, dtype=np.int64)
        self._starts = np.zeros(num_slots, dtype=np.int64)

    def values_per_page(self, column: ColumnSpec) -> int:
        """Values of a column that a full page has."""
        geometry = self.signature.geometry
        return geometry.rows if column.scope is Scope.STEP else geometry.starts

    def decode(self, slot: int, rows: int, starts: int, blocks: Sequence[bytes]) -> list[DecodedColumn]:
        """All columns of a chunk; errors as :meth:`Mirror.put`."""
        if not 0 <= slot < self.num_slots:
            raise ValueError(f"slot is {slot}, must be in [0, {self.num_slots - 1}]")
        columns = self.signature.columns
        check_chunk_shape(self.signature, rows, starts, len(blocks))
        sizes = [rows if column.scope is Scope.STEP else starts for column in columns]
        return [
            DecodedColumn(column, size, decode_bytes(column, size, block))
            for column, size, block in zip(columns, sizes, blocks, strict=True)
        ]

    def note(self, slot: int, rows: int, starts: int) -> None:
        """A chunk is in the slot now."""
        self._rows[slot] = rows
        self._starts[slot] = starts

    def first_rows(
        self,
        slots: npt.NDArray[np.int64],
        start_rows: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.integer],
        prefixes: npt.NDArray[np.integer],
        room: int,
        offset: int,
    ) -> npt.NDArray[np.int64]:
        """[n] row of its page at which each item's window begins; errors as :meth:`Mirror.gather`."""
        count = slots.size
        if not 0 <= offset <= room - count:
            raise ValueError(f"offset is {offset}, must be in [0, {room - count}] for {count} items")
        self._check_items(slots, start_rows, lengths, prefixes)
        first: npt.NDArray[np.int64] = start_rows - self.signature.geometry.context
        return first

    def _check_items(
        self,
        slots: npt.NDArray[np.int64],
        start_rows: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.integer],
        prefixes: npt.NDArray[np.integer],
    ) -> None:
        if not slots.shape == start_rows.shape == lengths.shape == prefixes.shape == (slots.size,):
            raise ValueError(
                f"slots {slots.shape}, start_rows {start_rows.shape}, lengths {lengths.shape} and prefixes "
                f"{prefixes.shape} must have one axis of one size"
            )
        # A start row of the page has `tail` rows of the page behind it, so all that is copied lies inside.
        context = self.signature.geometry.context
        wrong = (slots < 0) | (slots >= self.num_slots)
        inside = np.where(wrong, 0, slots)
        starts = np.where(wrong, 0, self._starts[inside])
        behind = np.minimum(self._rows[inside] - start_rows - 1, self.signature.geometry.tail)
        wrong |= (start_rows < context) | (start_rows >= context + starts)
        if np.any(wrong):
            i = int(np.flatnonzero(wrong)[0])
            raise ValueError(
                f"item {i}: slot {slots[i]} of {self.num_slots} has no start row {start_rows[i]} "
                f"({starts[i]} start rows behind {context} context rows)"
            )
        wrong = (lengths < 1) | (lengths > behind) | (prefixes < 0) | (prefixes > context)
        if np.any(wrong):
            i = int(np.flatnonzero(wrong)[0])
            raise ValueError(
                f"item {i}: length is {lengths[i]} and prefix {prefixes[i]}, must be in [1, {behind[i]}] and "
                f"[0, {context}]: its page has no more rows"
            )


class HostMirror:
    """A :class:`Mirror` in host memory."""

    def __init__(self, signature: Signature, num_slots: int) -> None:
        """Allocate all memory and touch it, so that a machine too small fails at the start and not after an hour."""
        self._book = SlotBook(signature, num_slots)
        self._pages: dict[str, npt.NDArray[np.uint8]] = {}
        for column in signature.columns:
            pages = np.empty((num_slots, self._book.values_per_page(column), column.value_bytes), dtype=np.uint8)
            pages.fill(0)
            self._pages[column.name] = pages

    @property
    def num_slots(self) -> int:
        return self._book.num_slots

    @property
    def num_bytes(self) -> int:
        """Bytes of all pages."""
        return sum(pages.nbytes for pages in self._pages.values())

    def put(self, slot: int, rows: int, starts: int, blocks: Sequence[bytes]) -> None:
        """See :meth:`Mirror.put`."""
        for column, size, data in self._book.decode(slot, rows, starts, blocks):
            page = self._pages[column.name][slot]
            page[:size] = np.frombuffer(data, dtype=np.uint8).reshape(size, column.value_bytes)
            page[size:] = 0
        self._book.note(slot, rows, starts)

    def gather(
        self,
        slots: npt.NDArray[np.integer],
        start_rows: npt.NDArray[np.integer],
        lengths: npt.NDArray[np.integer],
        prefixes: npt.NDArray[np.integer],
        out: BatchBuffer,
        offset: int = 0,
    ) -> None:
        """See :meth:`Mirror.gather`."""
        slot_numbers, starts = slots.astype(np.int64), start_rows.astype(np.int64)
        first_rows = self._book.first_rows(slot_numbers, starts, lengths, prefixes, out.batch_size, offset)
        for column in self._book.signature.columns:
            pages = self._pages[column.name]
            word = _word(column.value_bytes)
            first_words = (slot_numbers * pages.shape[1] + first_rows) * (column.value_bytes // word.itemsize)
            _copy_windows(pages.reshape(-1).view(word), first_words, out.raw[column.name].view(word), offset)
        out.lengths[offset : offset + slots.size] = lengths
        out.prefixes[offset : offset + slots.size] = prefixes

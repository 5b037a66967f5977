"""Where encoded chunks rest: slabs of memory that are freed or compacted as wholes.

Millions of small allocations of mixed ages would fragment the heap, and a process would grow past any budget that
counts only live bytes. Slabs are mapped from, and returned to, the operating system, so ``slab_bytes`` is what the
experience really costs in memory.
"""

from __future__ import annotations

import mmap
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

LARGEST_SLAB_BYTES = 64 << 20
SMALLEST_SLAB_BYTES = 64 << 10
#: Slabs that a budget below 16 x 64 MiB is cut into.
SLABS_PER_BUDGET = 16
#: Where records leave in any order, slabs are compacted all the time, one at a go, and a go must be short: at most so
#: many bytes and (but for very large budgets, which would else have too many slabs) so many of the largest records.
#: They are compacted while less than this share of them is live. More would save memory and cost copies.
SCATTERED_SHARE = 0.75
SCATTERED_SLAB_BYTES = 2 << 20
SCATTERED_SLAB_RECORDS = 2048
MOST_SLABS = 16384

HUGE_PAGE_BYTES = 2 << 20

_HEADER = struct.Struct("<QI")
"""Of a record: its handle, so that compaction finds who refers to it, and its number of blocks. Sizes follow (u32)."""


class BlockStoreFull(RuntimeError):
    """A record fits only after others are freed."""


@dataclass
class _Slab:
    memory: mmap.mmap
    used: int = 0
    """Bytes written; records lie one behind the other."""
    live: int = 0
    """Bytes of records that are not freed."""
    offsets: array[int] = field(default_factory=lambda: array("I"))
    """Where each record begins, those that are freed included."""


class BlockStore:
    """Tuples of byte strings by handle, in at most ``budget_bytes`` of slabs.

    ``largest_record_bytes`` is what one record may need (see :meth:`record_bytes`); it raises the size of a slab where
    need be. ``scattered``: records will be freed in any order, not first in, first out; about a quarter of the budget
    is then kept for what is dead and not yet compacted. Raises ValueError if the budget does not hold two slabs of that
    size (four if scattered).
    """

    def __init__(self, budget_bytes: int, largest_record_bytes: int = 0, *, scattered: bool = False) -> None:
        size = min(LARGEST_SLAB_BYTES, max(SMALLEST_SLAB_BYTES, budget_bytes // SLABS_PER_BUDGET))
        if scattered:
            short = min(SCATTERED_SLAB_BYTES, max(SMALLEST_SLAB_BYTES, SCATTERED_SLAB_RECORDS * largest_record_bytes))
            size = min(size, max(short, budget_bytes // MOST_SLABS))
        self.slab_size = max(size, largest_record_bytes)
        self.max_slabs = budget_bytes // self.slab_size
        least = 4 if scattered else 2
        if self.max_slabs < least:
            raise ValueError(
                f"budget_bytes is {budget_bytes}, must be at least {least * self.slab_size}: {least} slabs of the "
                "largest chunk"
            )
        #: With less room than this it is time to free some.
        self._reserve_bytes = max(self.slab_size / 4, budget_bytes / 64 if scattered else 0)
        self._compacted_share = SCATTERED_SHARE if scattered else 0.5
        full_bytes = self.max_slabs * self.slab_size
        #: With no more live bytes than this, :meth:`compact` can make room whenever there is too little.
        self._most_live_bytes = (
            SCATTERED_SHARE * (full_bytes - self._reserve_bytes - self.slab_size) if scattered else float(full_bytes)
        )
        self._slabs: dict[int, _Slab] = {}
        # The last slab given up is kept for the next: a table that is full opens one for each that it empties, and
        # fresh memory costs a page fault every 4 KiB.
        self._spare: mmap.mmap | None = None
        self._active = -1
        self._next_slab = 0
        # By handle: slab number << 32 | offset, or -1.
        self._locations = array("q")
        self._free_handles: list[int] = []
        self._live_bytes = 0

    @staticmethod
    def record_bytes(num_blocks: int, payload_bytes: int) -> int:
        """Bytes that ``num_blocks`` blocks of ``payload_bytes`` in all take up in a slab."""
        return _HEADER.size + 4 * num_blocks + payload_bytes

    @property
    def live_bytes(self) -> int:
        """Bytes of all records held."""
        return self._live_bytes

    @property
    def slab_bytes(self) -> int:
        """Bytes of the slabs that hold them, and of the spare one."""
        return (len(self._slabs) + (self._spare is not None)) * self.slab_size

    @property
    def is_tight(self) -> bool:
        """Whether little of the budget is left: time to free some, off the insert path."""
        room = (self.max_slabs - len(self._slabs)) * self.slab_size
        if self._active >= 0:
            room += self.slab_size - self._slabs[self._active].used
        return room < self._reserve_bytes or self._live_bytes > self._most_live_bytes

    def fits(self, record_bytes: int) -> bool:
        """Whether :meth:`put` would find room for a record of that size now."""
        if len(self._slabs) < self.max_slabs:
            return record_bytes <= self.slab_size
        return self._active >= 0 and self._slabs[self._active].used + record_bytes <= self.slab_size

    def put(self, blocks: tuple[bytes, ...]) -> int:
        """Keep a copy of ``blocks``; returns the handle. Raises BlockStoreFull if there is no room."""
        handle = self._free_handles.pop() if self._free_handles else len(self._locations)
        header = struct.pack(f"<QI{len(blocks)}I", handle, len(blocks), *map(len, blocks))
        try:
            location = self._append(b"".join((header, *blocks)))
        except BlockStoreFull:
            if handle < len(self._locations):
                self._free_handles.append(handle)
            raise
        if handle == len(self._locations):
            self._locations.append(location)
        else:
            self._locations[handle] = location
        return handle

    def put_many(self, sizes: Ints, blocks: Sequence[Sequence[bytes]]) -> Ints:
        """As :meth:`put` of records [n], one after the other, as far as there is room; handles of those that are in.

        ``blocks`` are [columns][n], ``sizes`` [columns, n] their bytes.
        """
        num_blocks, n = sizes.shape
        record_bytes = _HEADER.size + 4 * num_blocks + sizes.sum(axis=0)
        count = self._num_fitting(record_bytes)
        handles = self._new_handles(count)
        headers = np.empty(count, [("handle", "<u8"), ("num_blocks", "<u4"), ("sizes", "<u4", (num_blocks,))])
        headers["handle"], headers["num_blocks"], headers["sizes"] = handles, num_blocks, sizes[:, :count].T
        data, width = headers.tobytes(), headers.itemsize
        parts = [[data[begin : begin + width] for begin in range(0, len(data), width)], *blocks]
        records = b"".join(chain.from_iterable(zip(*parts, strict=count == n)))
        self._append_records(handles, record_bytes[:count], records)
        return handles

    def get(self, handle: int) -> tuple[bytes, ...]:
        """The blocks of a record."""
        slab, offset = self._find(handle)
        sizes, _ = self._sizes(slab, offset)
        begin = offset + _HEADER.size + 4 * len(sizes)
        blocks = []
        for size in sizes:
            blocks.append(slab.memory[begin : begin + size])
            begin += size
        return tuple(blocks)

    def free(self, handle: int) -> None:
        """Give up a record. A slab whose last record it was is unmapped."""
        slab, offset = self._find(handle)
        number = self._locations[handle] >> 32
        _, record_bytes = self._sizes(slab, offset)
        slab.live -= record_bytes
        self._live_bytes -= record_bytes
        self._locations[handle] = -1
        self._free_handles.append(handle)
        if slab.live == 0:
            self._drop(number)

    def compact(self) -> bool:
        """Rewrite the emptiest slab if less than half of all full slabs is live (scattered: 3/4); whether it did.

        Under first-in-first-out removal slabs empty one after the other and none is ever rewritten.
        """
        active = self._slabs.get(self._active)
        num_sealed = len(self._slabs) - (active is not None)
        sealed_live = self._live_bytes - (active.live if active is not None else 0)
        if not num_sealed or sealed_live >= self._compacted_share * num_sealed * self.slab_size:
            return False
        number = min((n for n in self._slabs if n != self._active), key=lambda n: self._slabs[n].live)
        handles, sizes, data = self._live_records(number)
        # Unmapped first, so that the budget holds; what is left is less than that share of a slab.
        self._live_bytes -= self._slabs[number].live
        self._drop(number)
        self._append_records(handles, sizes, data)
        return True

    def _live_records(self, number: int) -> tuple[Ints, Ints, bytes]:
        """Handles [n] and sizes [n] of what is live in a slab, and its bytes. A loop over records would cost more."""
        slab = self._slabs[number]
        offsets = np.array(slab.offsets, np.int64)
        # The view goes before the slab does: memory that is in use cannot be unmapped.
        memory = np.frombuffer(slab.memory, np.uint8)
        handles = memory[offsets[:, None] + np.arange(8)].view("<u8")[:, 0].astype(np.int64)
        live = np.frombuffer(self._locations, np.int64)[handles] == number << 32 | offsets
        ends = np.append(offsets[1:], slab.used)[live]
        begins = offsets[live]
        # Neighbours are copied together.
        gaps = np.flatnonzero(begins[1:] != ends[:-1])
        runs = zip(begins[np.append(0, gaps + 1)].tolist(), ends[np.append(gaps, -1)].tolist(), strict=True)
        return handles[live], ends - begins, b"".join(slab.memory[begin:end] for begin, end in runs)

    def _append_records(self, handles: Ints, sizes: Ints, data: bytes) -> None:
        """Write records [n] that lie one behind the other in ``data``, as many at a time as a slab takes."""
        ends = np.cumsum(sizes)
        begins = ends - sizes
        done = 0
        while done < handles.size:
            slab = self._slab_for(int(sizes[done]))
            first = int(begins[done])
            count = int(np.searchsorted(ends[done:] - first, self.slab_size - slab.used, side="right"))
            part = slice(done, done + count)
            offsets = begins[part] - first + slab.used
            length = int(ends[done + count - 1]) - first
            slab.memory[slab.used : slab.used + length] = data[first : first + length]
            slab.offsets.extend(offsets.tolist())
            slab.used += length
            slab.live += length
            self._live_bytes += length
            np.frombuffer(self._locations, np.int64)[handles[part]] = self._active << 32 | offsets
            done += count

    def _num_fitting(self, record_bytes: Ints) -> int:
        """How many of the records [n], one after the other, there is room for."""
        ends = np.cumsum(record_bytes)
        slabs_left = self.max_slabs - len(self._slabs)
        room = self.slab_size - self._slabs[self._active].used if self._active >= 0 else 0
        done = 0
        while True:
            begin = int(ends[done - 1]) if done else 0
            done += int(np.searchsorted(ends[done:] - begin, room, side="right"))
            if done == ends.size or not slabs_left:
                return done
            slabs_left -= 1
            room = self.slab_size

    def _new_handles(self, count: int) -> Ints:
        """That nobody uses; their locations are to be set."""
        again = self._free_handles[-count:] if count else []
        del self._free_handles[len(self._free_handles) - len(again) :]
        first = len(self._locations)
        self._locations.extend([-1] * (count - len(again)))
        return np.array([*reversed(again), *range(first, len(self._locations))], np.int64)

    def clear(self) -> None:
        """Free everything."""
        for number in list(self._slabs):
            self._drop(number)
        self._locations = array("q")
        self._free_handles = []
        self._live_bytes = 0

    def _find(self, handle: int) -> tuple[_Slab, int]:
        location = self._locations[handle] if 0 <= handle < len(self._locations) else -1
        if location < 0:
            raise KeyError(f"no record has handle {handle}")
        return self._slabs[location >> 32], location & 0xFFFFFFFF

    @staticmethod
    def _sizes(slab: _Slab, offset: int) -> tuple[tuple[int, ...], int]:
        """Sizes of the blocks of the record at ``offset``, and of the whole record."""
        _, num_blocks = _HEADER.unpack_from(slab.memory, offset)
        sizes = struct.unpack_from(f"<{num_blocks}I", slab.memory, offset + _HEADER.size)
        return sizes, _HEADER.size + 4 * num_blocks + sum(sizes)

    def _append(self, record: bytes) -> int:
        """Write a record to the active slab; returns its location."""
        slab = self._slab_for(len(record))
        offset = slab.used
        slab.offsets.append(offset)
        slab.memory[offset : offset + len(record)] = record
        slab.used += len(record)
        slab.live += len(record)
        self._live_bytes += len(record)
        return self._active << 32 | offset

    def _slab_for(self, record_bytes: int) -> _Slab:
        """The active slab, or another if a record does not fit there. Raises BlockStoreFull if there may be none."""
        slab = self._slabs.get(self._active)
        if slab is not None and slab.used + record_bytes <= self.slab_size:
            return slab
        if len(self._slabs) >= self.max_slabs or record_bytes > self.slab_size:
            raise BlockStoreFull(
                f"a record of {record_bytes} bytes does not fit: {len(self._slabs)} of {self.max_slabs} slabs of "
                f"{self.slab_size} bytes are in use"
            )
        slab = _Slab(self._spare or self._map())
        self._spare = None
        self._active = self._next_slab
        self._next_slab += 1
        self._slabs[self._active] = slab
        return slab

    def _map(self) -> mmap.mmap:
        memory = mmap.mmap(-1, self.slab_size)
        if self.slab_size >= HUGE_PAGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        return memory

    def _drop(self, number: int) -> None:
        memory = self._slabs.pop(number).memory
        if self._spare is None:
            self._spare = memory
        else:
            memory.close()
        if number == self._active:
            self._active = -1

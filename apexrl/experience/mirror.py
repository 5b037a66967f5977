"""The learner's copy of replay pages, and the gather of windows into batches; here in host memory.

One thread applies replies in their order: put the new chunks, then gather the reply's windows *before the next reply is
touched*. Nothing refers to slots after that, so a slot may be overwritten at any later time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from apexrl.chunk_batch import ChunkBatch
from apexrl.chunk_checks import ChunkChecker
from apexrl.compiled import compiled, copy_to, types
from apexrl.experience.batch import CPU, BatchBuffer
from apexrl.experience.records import WORD_BYTES, Bytes, Ints, Record, RecordLayout
from apexrl.types import Signature


@compiled((types.int64[::1], types.int64[::1], types.int64, types.int64[::1], types.int64[::1]))
def _copy_windows(source: Ints, first_words: Ints, width: int, addresses: Ints, sizes: Ints) -> None:
    """Copy ``width`` words of ``source`` from each of ``first_words`` on: ``sizes[0]`` of them to the memory at
    ``addresses[0]``, one behind the other, the next ``sizes[1]`` to ``addresses[1]``, and so on.
    """
    window = 0
    for place in range(sizes.size):
        for row in range(sizes[place]):
            copy_to(addresses[place] + row * width * WORD_BYTES, source, first_words[window], width)
            window += 1


class Place(NamedTuple):
    """Rows ``offset`` .. ``offset + size - 1`` of a batch buffer."""

    buffer: BatchBuffer
    """Made for the same signature, on the mirror's device."""
    offset: int
    size: int


class Mirror(Protocol):
    """Decoded pages, one per slot. Not thread-safe: one thread puts and gathers."""

    @property
    def num_slots(self) -> int: ...

    @property
    def num_bytes(self) -> int:
        """Bytes of all pages."""
        ...

    def put(self, slots: npt.NDArray[np.integer], chunks: ChunkBatch) -> None:
        """Decode n chunks into slots [n], in their order; rows that a short chunk does not have become zeros.

        Raises:
            SignatureError: a chunk does not agree with the signature; all of the slots are empty then.
            ValueError: there is no such slot. Nothing was written.
        """
        ...

    def gather(
        self,
        slots: npt.NDArray[np.integer],
        start_rows: npt.NDArray[np.integer],
        lengths: npt.NDArray[np.integer],
        prefixes: npt.NDArray[np.integer],
        places: Sequence[Place],
    ) -> None:
        """Copy the windows of n items to ``places``, one behind the other.

        A window is the rows ``start - context`` to ``start + tail`` of its page. Also writes the buffers' ``lengths``
        and ``prefixes``.

        Args:
            slots: [n] of the items' pages.
            start_rows: [n] row of the page at which the item starts, context rows included.
            lengths: [n] window lengths k, at least 1.
            prefixes: [n] rows before the start row that belong to the item.
            places: of n items together.

        Raises:
            ValueError: an item lies outside its page, its slot is empty, or the places are not those of n items.
                Nothing was written.
        """
        ...


class SlotBook:
    """What each slot of a mirror holds, and the checks of what is put and gathered."""

    def __init__(self, signature: Signature, num_slots: int) -> None:
        if num_slots < 1:
            raise ValueError(f"num_slots is {num_slots}, must be at least 1")
        self.layout = RecordLayout(signature)
        self.num_slots = num_slots
        self._signature = signature
        self._checker = ChunkChecker(signature)
        self._rows = np.zeros(num_slots, dtype=np.int64)
        self._starts = np.zeros(num_slots, dtype=np.int64)

    def vacate(self, slots: npt.NDArray[np.integer], chunks: ChunkBatch) -> tuple[Ints, ChunkBatch]:
        """Check what is put, and forget what was there; until :meth:`note` the slots are empty.

        Returns:
            Of chunks that share a slot the last, and their slots; errors as :meth:`Mirror.put`.
        """
        numbers = slots.astype(np.int64)
        if numbers.shape != (len(chunks),):
            raise ValueError(f"slots have shape {numbers.shape}, must be ({len(chunks)},), one per chunk")
        if numbers.size and not 0 <= int(numbers.min()) <= int(numbers.max()) < self.num_slots:
            raise ValueError(f"slots span [{numbers.min()}, {numbers.max()}], must be in [0, {self.num_slots - 1}]")
        self._rows[numbers] = self._starts[numbers] = 0
        self._checker.check_shapes(chunks)
        distinct, last = np.unique(numbers[::-1], return_index=True)
        if distinct.size == numbers.size:
            return numbers, chunks
        return distinct, chunks.chosen(numbers.size - 1 - last)

    def note(self, slots: Ints, chunks: ChunkBatch) -> None:
        """The chunks are in their slots now."""
        self._rows[slots] = chunks.rows
        self._starts[slots] = chunks.starts

    def first_rows(
        self,
        slots: Ints,
        start_rows: Ints,
        lengths: npt.NDArray[np.integer],
        prefixes: npt.NDArray[np.integer],
        places: Sequence[Place],
    ) -> Ints:
        """[n] row of its page at which each item's window begins; errors as :meth:`Mirror.gather`."""
        count = slots.size
        for buffer, offset, own in places:
            if buffer.memory.layout.signature != self._signature:
                raise ValueError("a place's buffer was made for another signature than the mirror")
            if not 0 <= offset <= buffer.batch_size - own:
                raise ValueError(f"offset is {offset}, must be in [0, {buffer.batch_size - own}] for {own} items")
        if (total := sum(place.size for place in places)) != count:
            raise ValueError(f"places are of {total} items, must be of {count}")
        self._check_items(slots, start_rows, lengths, prefixes)
        first: Ints = start_rows - self._signature.geometry.context
        return first

    def _check_items(
        self,
        slots: Ints,
        start_rows: Ints,
        lengths: npt.NDArray[np.integer],
        prefixes: npt.NDArray[np.integer],
    ) -> None:
        if not slots.shape == start_rows.shape == lengths.shape == prefixes.shape == (slots.size,):
            raise ValueError(
                f"slots {slots.shape}, start_rows {start_rows.shape}, lengths {lengths.shape} and prefixes "
                f"{prefixes.shape} must have one axis of one size"
            )
        # A start row of the page has `tail` rows of the page behind it, so all that is copied lies inside.
        context = self._signature.geometry.context
        wrong = (slots < 0) | (slots >= self.num_slots)
        inside = np.where(wrong, 0, slots)
        starts = np.where(wrong, 0, self._starts[inside])
        behind = np.minimum(self._rows[inside] - start_rows - 1, self._signature.geometry.tail)
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


def note_items(places: Sequence[Place], lengths: npt.NDArray[np.integer], prefixes: npt.NDArray[np.integer]) -> None:
    """Write the items' ``lengths`` and ``prefixes`` [n] to the buffers of their places."""
    begin = 0
    for buffer, offset, size in places:
        buffer.lengths[offset : offset + size] = lengths[begin : begin + size]
        buffer.prefixes[offset : offset + size] = prefixes[begin : begin + size]
        begin += size


def _copy_records(
    memory: Bytes, record: Record, run: int, firsts: Ints, targets: Sequence[tuple[torch.Tensor, int]], sizes: Ints
) -> None:
    """Copy ``run`` records of ``memory`` from each of ``firsts`` on to a row: ``sizes[i]`` of them to ``targets[i]``,
    which is a tensor and its first row.

    All at once: every call of a compiled loop takes the interpreter from the update for a moment.
    """
    if record.num_words == 0:
        return
    width = run * record.num_words
    addresses = [tensor.data_ptr() + offset * width * WORD_BYTES for tensor, offset in targets]
    _copy_windows(memory.view(np.int64), firsts * record.num_words, width, np.array(addresses, dtype=np.int64), sizes)


class HostMirror:
    """A :class:`Mirror` in host memory."""

    def __init__(self, signature: Signature, num_slots: int) -> None:
        """Allocate all memory and touch it, so that a machine too small fails at the start and not after an hour."""
        self._book = SlotBook(signature, num_slots)
        self._layout = self._book.layout
        self._geometry = signature.geometry
        self._steps = np.empty(num_slots * self._layout.page_step_bytes, dtype=np.uint8)
        self._items = np.empty(num_slots * self._layout.page_item_bytes, dtype=np.uint8)
        self._steps.fill(0)
        self._items.fill(0)

    @property
    def num_slots(self) -> int:
        return self._book.num_slots

    @property
    def num_bytes(self) -> int:
        """Bytes of all pages."""
        return self._steps.nbytes + self._items.nbytes

    def put(self, slots: npt.NDArray[np.integer], chunks: ChunkBatch) -> None:
        """See :meth:`Mirror.put`."""
        numbers, chunks = self._book.vacate(slots, chunks)
        layout = self._layout
        steps, items = numbers * layout.page_step_bytes, numbers * layout.page_item_bytes
        layout.decode(chunks, 0, len(chunks), self._steps, steps, self._items, items)
        self._book.note(numbers, chunks)

    def gather(
        self,
        slots: npt.NDArray[np.integer],
        start_rows: npt.NDArray[np.integer],
        lengths: npt.NDArray[np.integer],
        prefixes: npt.NDArray[np.integer],
        places: Sequence[Place],
    ) -> None:
        """See :meth:`Mirror.gather`."""
        if any(place.buffer.device != CPU for place in places):
            raise ValueError("a place's buffer is not in host memory, as this mirror is")
        slot_numbers = slots.astype(np.int64)
        first_rows = self._book.first_rows(slot_numbers, start_rows.astype(np.int64), lengths, prefixes, places)
        rows, starts, window = self._geometry.rows, self._geometry.starts, self._geometry.window
        layout, sizes = self._layout, np.array([place.size for place in places], dtype=np.int64)
        steps = [(buffer.memory.steps, offset) for buffer, offset, _ in places]
        _copy_records(self._steps, layout.step, window, slot_numbers * rows + first_rows, steps, sizes)
        items = [(buffer.memory.items, offset) for buffer, offset, _ in places]
        _copy_records(self._items, layout.item, 1, slot_numbers * starts + first_rows, items, sizes)
        note_items(places, lengths, prefixes)

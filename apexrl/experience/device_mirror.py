"""The learner's copy of replay pages in the memory of its device, and the gather of windows into batches there.

Chunks are decoded on the host and copied once; every batch is then put together where it is needed, and only indices
cross over. A page is drawn from some dozens of times, so this moves a fraction of what copying batches would.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from apexrl.experience.batch import BatchBuffer, as_words, torch_dtype
from apexrl.experience.mirror import DecodedColumn, SlotBook
from apexrl.types import ColumnSpec, Scope, Signature

#: Pages that are copied to the device together at most, and sets of them: one is filled while another is read.
STAGE_PAGES = 32
NUM_STAGES = 3
_ALIGNMENT = 16


class CopyStream:
    """The order of everything that mirrors do on a device, beside the order of the updates.

    On CUDA a stream of its own, so that copies and gathers run while an update does; elsewhere things are done at once.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def use(self) -> contextlib.AbstractContextManager[object]:
        """What is asked of the device inside happens in this order."""
        return contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def mark(self) -> torch.cuda.Event | None:
        """The moment at which all that was asked so far is done; None: it is."""
        return None if self._stream is None else self._stream.record_event()


class PageStage:
    """Decoded pages on the host on their way to a device, in memory that is allocated once.

    A page lies in one piece, column behind column, each aligned for any word.

    Args:
        book: of the mirror.
        pinned: whether the device reads the memory by itself, while the host goes on.
    """

    def __init__(self, book: SlotBook, pinned: bool) -> None:
        self._places: dict[str, slice] = {}
        end = 0
        for column in book.signature.columns:
            size = book.values_per_page(column) * column.value_bytes
            self._places[column.name] = slice(end, end + size)
            end += -(-size // _ALIGNMENT) * _ALIGNMENT
        self._memory = torch.zeros((STAGE_PAGES, end), dtype=torch.uint8, pin_memory=pinned)
        self._bytes: npt.NDArray[np.uint8] = self._memory.numpy()
        self.slots: list[int] = []
        """Where each page that is here belongs; all different, so that the order of the copies does not matter."""
        self.sent: torch.cuda.Event | None = None
        """The moment at which the device has read the pages."""

    def has_room_for(self, slot: int) -> bool:
        return len(self.slots) < STAGE_PAGES and slot not in self.slots

    def add(self, slot: int, decoded: Sequence[DecodedColumn]) -> None:
        """Take in a page; rows that a short chunk does not have become zeros."""
        page = self._bytes[len(self.slots)]
        for column, _, data in decoded:
            own = page[self._places[column.name]]
            own[: len(data)] = np.frombuffer(data, dtype=np.uint8)
            own[len(data) :] = 0
        self.slots.append(slot)

    def pages(self) -> torch.Tensor:
        """[pages, bytes] of what is here."""
        return self._memory[: len(self.slots)]

    def bytes_of(self, column: ColumnSpec) -> slice:
        """Where a column lies in every page."""
        return self._places[column.name]

    def clear(self) -> None:
        """Begin anew, once the device has read what was here."""
        if self.sent is not None:
            self.sent.synchronize()
            self.sent = None
        self.slots.clear()


class DeviceMirror:
    """A :class:`~apexrl.experience.mirror.Mirror` on a device.

    Batches are whole once ``stream`` has come so far: take :meth:`CopyStream.mark` behind the last gather into a batch
    and give it to :attr:`BatchBuffer.ready <apexrl.experience.batch.BatchBuffer.ready>`. A buffer that is gathered into
    must not be read by an update any more.

    Raises:
        torch.OutOfMemoryError: from the constructor, where all memory is taken.
    """

    def __init__(self, signature: Signature, num_slots: int, stream: CopyStream) -> None:
        self._book = SlotBook(signature, num_slots)
        self._stream = stream
        self._pinned = stream.device.type == "cuda"
        #: name -> [slots * values, words]
        self._pages: dict[str, torch.Tensor] = {}
        with stream.use():
            for column in signature.columns:
                shape = (num_slots * self._book.values_per_page(column), *column.shape)
                pages = torch.zeros(shape, dtype=torch_dtype(column), device=stream.device)
                self._pages[column.name] = as_words(pages, column)
        self._stages = itertools.cycle([PageStage(self._book, self._pinned) for _ in range(NUM_STAGES)])
        self._stage = next(self._stages)
        self._window = np.arange(signature.geometry.window)
        self._has_item_columns = any(column.scope is Scope.ITEM for column in signature.columns)

    @property
    def num_slots(self) -> int:
        return self._book.num_slots

    @property
    def num_bytes(self) -> int:
        """Bytes of all pages."""
        return sum(pages.nbytes for pages in self._pages.values())

    def put(self, slot: int, rows: int, starts: int, blocks: Sequence[bytes]) -> None:
        """See :meth:`Mirror.put <apexrl.experience.mirror.Mirror.put>`.

        The chunk goes to the device together with its neighbours, before the next gather.
        """
        decoded = self._book.decode(slot, rows, starts, blocks)
        if not self._stage.has_room_for(slot):
            self._flush()
        self._stage.add(slot, decoded)
        self._book.note(slot, rows, starts)

    def _flush(self) -> None:
        """Copy what has been put since the last time to its slots: once for all chunks, then once for each column."""
        stage = self._stage
        if not stage.slots:
            return
        with self._stream.use():
            pages = stage.pages().to(self._stream.device, non_blocking=True)
            slots = self._indices(np.array(stage.slots, dtype=np.int64))
            for column in self._book.signature.columns:
                own = self._pages[column.name].view(self.num_slots, -1)
                own.index_copy_(0, slots, pages[:, stage.bytes_of(column)].view(own.dtype))
        stage.sent = self._stream.mark()
        self._stage = next(self._stages)
        self._stage.clear()

    def gather(
        self,
        slots: npt.NDArray[np.integer],
        start_rows: npt.NDArray[np.integer],
        lengths: npt.NDArray[np.integer],
        prefixes: npt.NDArray[np.integer],
        out: BatchBuffer,
        offset: int = 0,
    ) -> None:
        """See :meth:`Mirror.gather <apexrl.experience.mirror.Mirror.gather>`."""
        slot_numbers, starts = slots.astype(np.int64), start_rows.astype(np.int64)
        first_rows = self._book.first_rows(slot_numbers, starts, lengths, prefixes, out.batch_size, offset)
        self._flush()
        geometry = self._book.signature.geometry
        with self._stream.use():
            rows = self._indices(((slot_numbers * geometry.rows + first_rows)[:, None] + self._window).reshape(-1))
            items = self._indices(slot_numbers * geometry.starts + first_rows) if self._has_item_columns else rows
            for column in self._book.signature.columns:
                chosen, per_item = (rows, self._window.size) if column.scope is Scope.STEP else (items, 1)
                begin = offset * per_item
                # Into the batch itself: `out` of exactly that shape is written in place.
                torch.index_select(
                    self._pages[column.name], 0, chosen, out=out.words[column.name][begin : begin + chosen.numel()]
                )
        out.lengths[offset : offset + slots.size] = lengths
        out.prefixes[offset : offset + slots.size] = prefixes

    def _indices(self, values: npt.NDArray[np.int64]) -> torch.Tensor:
        """Indices on the device. Torch's pool gives no pinned memory away before the copies out of it are done."""
        staged = torch.empty(values.size, dtype=torch.int64, pin_memory=self._pinned)
        staged.numpy()[:] = values
        return staged.to(self._stream.device, non_blocking=True)

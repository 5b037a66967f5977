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

from apexrl.chunk_batch import ChunkBatch
from apexrl.experience.mirror import Place, SlotBook, note_items
from apexrl.experience.records import WORD_BYTES, RecordLayout
from apexrl.types import Signature

#: Pages that are copied to the device together at most, and sets of them: one is filled while another is read.
STAGE_PAGES = 32
NUM_STAGES = 3


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

    Args:
        layout: of the pages.
        pinned: whether the device reads the memory by itself, while the host goes on.
    """

    def __init__(self, layout: RecordLayout, pinned: bool) -> None:
        self._layout = layout
        self._pages = np.arange(STAGE_PAGES)
        host = torch.device("cpu")
        self._steps = _pages(STAGE_PAGES, layout.page_step_bytes, host, pinned=pinned)
        self._items = _pages(STAGE_PAGES, layout.page_item_bytes, host, pinned=pinned)
        self.sent: torch.cuda.Event | None = None
        """The moment at which the device has read the pages."""

    def decode(self, chunks: ChunkBatch, begin: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Chunks from ``begin`` to before ``end``, :data:`STAGE_PAGES` at most; waits until former ones have been read.

        Returns:
            Their rows and their start rows, int64 [chunks, words] each.
        """
        if self.sent is not None:
            self.sent.synchronize()
        layout, pages = self._layout, self._pages[: end - begin]
        steps, items = pages * layout.page_step_bytes, pages * layout.page_item_bytes
        layout.decode(chunks, begin, end, _bytes(self._steps), steps, _bytes(self._items), items)
        return self._steps[: end - begin], self._items[: end - begin]


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
        self._geometry = signature.geometry
        self._pinned = stream.device.type == "cuda"
        layout = self._book.layout
        with stream.use():
            #: [slots, words] of each scope.
            self._steps = _pages(num_slots, layout.page_step_bytes, stream.device)
            self._items = _pages(num_slots, layout.page_item_bytes, stream.device)
        width = layout.step.num_words
        #: [rows of all pages, words of a window]: the window that begins at each row, in the memory of the pages.
        self._windows = self._steps.as_strided(
            (num_slots * self._geometry.rows - self._geometry.window + 1, self._geometry.window * width), (width, 1)
        )
        self._item_records = self._items.view(num_slots * self._geometry.starts, layout.item.num_words)
        self._stages = itertools.cycle([PageStage(layout, self._pinned) for _ in range(NUM_STAGES)])

    @property
    def num_slots(self) -> int:
        return self._book.num_slots

    @property
    def num_bytes(self) -> int:
        """Bytes of all pages."""
        return self._steps.nbytes + self._items.nbytes

    def put(self, slots: npt.NDArray[np.integer], chunks: ChunkBatch) -> None:
        """See :meth:`Mirror.put <apexrl.experience.mirror.Mirror.put>`."""
        numbers, chunks = self._book.vacate(slots, chunks)
        for begin in range(0, len(chunks), STAGE_PAGES):
            end = min(begin + STAGE_PAGES, len(chunks))
            stage = next(self._stages)
            steps, items = stage.decode(chunks, begin, end)
            with self._stream.use():
                # Slots are distinct, so that the order of the copies within one call does not matter.
                own = self._indices(numbers[begin:end])
                self._steps.index_copy_(0, own, steps.to(self._stream.device, non_blocking=True))
                if items.numel():
                    self._items.index_copy_(0, own, items.to(self._stream.device, non_blocking=True))
            stage.sent = self._stream.mark()
        self._book.note(numbers, chunks)

    def gather(
        self,
        slots: npt.NDArray[np.integer],
        start_rows: npt.NDArray[np.integer],
        lengths: npt.NDArray[np.integer],
        prefixes: npt.NDArray[np.integer],
        places: Sequence[Place],
    ) -> None:
        """See :meth:`Mirror.gather <apexrl.experience.mirror.Mirror.gather>`."""
        slot_numbers = slots.astype(np.int64)
        first_rows = self._book.first_rows(slot_numbers, start_rows.astype(np.int64), lengths, prefixes, places)
        sizes = [place.size for place in places]
        with self._stream.use():
            windows = torch.split(self._indices(slot_numbers * self._geometry.rows + first_rows), sizes)
            for (buffer, offset, count), own in zip(places, windows, strict=True):
                # Into the batch itself: `out` of exactly that shape is written in place.
                torch.index_select(self._windows, 0, own, out=buffer.memory.steps[offset : offset + count])
            if self._item_records.numel():
                items = torch.split(self._indices(slot_numbers * self._geometry.starts + first_rows), sizes)
                for (buffer, offset, count), own in zip(places, items, strict=True):
                    torch.index_select(self._item_records, 0, own, out=buffer.memory.items[offset : offset + count])
        note_items(places, lengths, prefixes)

    def _indices(self, values: npt.NDArray[np.int64]) -> torch.Tensor:
        """Indices on the device. Torch's pool gives no pinned memory away before the copies out of it are done."""
        staged = torch.empty(values.size, dtype=torch.int64, pin_memory=self._pinned)
        staged.numpy()[:] = values
        return staged.to(self._stream.device, non_blocking=True)


def _pages(number: int, page_bytes: int, device: torch.device, *, pinned: bool = False) -> torch.Tensor:
    """Zeros [number, words of a page] int64."""
    return torch.zeros((number, page_bytes // WORD_BYTES), dtype=torch.int64, device=device, pin_memory=pinned)


def _bytes(pages: torch.Tensor) -> npt.NDArray[np.uint8]:
    """[bytes] of pages on the host."""
    values: npt.NDArray[np.uint8] = pages.numpy().reshape(-1).view(np.uint8)
    return values

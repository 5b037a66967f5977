"""The learner's copy of replay pages in the memory of its device, and the gather of windows into batches there.

Chunks are decoded on the host and copied once; every batch is then put together where it is needed, and only indices
cross over. A page is drawn from some dozens of times, so this moves a fraction of what copying batches would.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from apexrl.experience.batch import BatchBuffer, as_words, torch_dtype
from apexrl.experience.mirror import SlotBook
from apexrl.types import ColumnSpec, Scope, Signature


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
        self._window = np.arange(signature.geometry.window)

    @property
    def num_slots(self) -> int:
        return self._book.num_slots

    @property
    def num_bytes(self) -> int:
        """Bytes of all pages."""
        return sum(pages.nbytes for pages in self._pages.values())

    def put(self, slot: int, rows: int, starts: int, blocks: Sequence[bytes]) -> None:
        """See :meth:`Mirror.put <apexrl.experience.mirror.Mirror.put>`."""
        decoded = self._book.decode(slot, rows, starts, blocks)
        with self._stream.use():
            for column, size, data in decoded:
                values = self._book.values_per_page(column)
                page = self._pages[column.name][slot * values : (slot + 1) * values]
                page[:size].copy_(self._staged(column, data), non_blocking=True)
                page[size:].zero_()
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
        """See :meth:`Mirror.gather <apexrl.experience.mirror.Mirror.gather>`."""
        slot_numbers, starts = slots.astype(np.int64), start_rows.astype(np.int64)
        first_rows = self._book.first_rows(slot_numbers, starts, lengths, prefixes, out.batch_size, offset)
        geometry = self._book.signature.geometry
        with self._stream.use():
            items = self._indices(slot_numbers * geometry.starts + first_rows)
            rows = self._indices(((slot_numbers * geometry.rows + first_rows)[:, None] + self._window).reshape(-1))
            for column in self._book.signature.columns:
                chosen, per_item = (rows, self._window.size) if column.scope is Scope.STEP else (items, 1)
                begin = offset * per_item
                # Into the batch itself: `out` of exactly that shape is written in place.
                torch.index_select(
                    self._pages[column.name], 0, chosen, out=out.words[column.name][begin : begin + chosen.numel()]
                )
        out.lengths[offset : offset + slots.size] = lengths
        out.prefixes[offset : offset + slots.size] = prefixes

    def _staged(self, column: ColumnSpec, data: bytes) -> torch.Tensor:
        """Values of a column as [values, words] on the host, from where the copy need not be waited for.

        Pinned memory comes from torch's pool, which gives none away again before the copies out of it are done.
        """
        word_bytes = math.gcd(column.value_bytes, 8)
        staged = torch.empty(len(data), dtype=torch.uint8, pin_memory=self._pinned)
        staged.numpy()[:] = np.frombuffer(data, dtype=np.uint8)
        return staged.view(self._pages[column.name].dtype).view(-1, column.value_bytes // word_bytes)

    def _indices(self, values: npt.NDArray[np.int64]) -> torch.Tensor:
        """Indices on the device."""
        staged = torch.empty(values.size, dtype=torch.int64, pin_memory=self._pinned)
        staged.numpy()[:] = values
        return staged.to(self._stream.device, non_blocking=True)

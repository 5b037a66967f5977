"""Preallocated batches of windows, and the bounded ring that they go round in."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from apexrl.experience.records import Record, RecordLayout
from apexrl.types import ColumnSpec, Signature, SignatureError

CPU = torch.device("cpu")


class WindowBatch(NamedTuple):
    """A batch of B windows on the learner's device. W = context + 1 + T rows; the start row is row ``context``."""

    columns: dict[str, torch.Tensor]
    """Step columns, name -> [B, W, ...]. Rows behind ``context + k`` hold anything."""
    item_columns: dict[str, torch.Tensor]
    """name -> [B, ...]."""
    lengths: torch.Tensor
    """[B] int64 k: the item bootstraps from row ``context + k``."""
    prefixes: torch.Tensor
    """[B] int64."""
    weights: torch.Tensor
    """[B] f32 importance weights w = (N P)^-beta / max w."""
    memory: BatchMemory | None = None
    """What all of the above are views of, if they are."""

    def to(self, device: torch.device) -> WindowBatch:
        """The batch on ``device``; from pinned memory the copy is asynchronous."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def rows(self, rows: slice) -> WindowBatch:
        """Some windows of the batch, in the same memory."""
        return self._replace(memory=None)._each(lambda tensor: tensor[rows])

    def tensors(self) -> list[torch.Tensor]:
        """Tensors that hold everything, always in the same order."""
        if self.memory is not None:
            return list(self.memory.tensors)
        return [*self.columns.values(), *self.item_columns.values(), self.lengths, self.prefixes, self.weights]

    def cloned(self) -> WindowBatch:
        """The batch in memory of its own."""
        return self._each(torch.clone)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> WindowBatch:
        if self.memory is not None:
            return self.memory.each(change).as_batch()
        return WindowBatch(
            columns={name: change(tensor) for name, tensor in self.columns.items()},
            item_columns={name: change(tensor) for name, tensor in self.item_columns.items()},
            lengths=change(self.lengths),
            prefixes=change(self.prefixes),
            weights=change(self.weights),
        )


class BatchMemory:
    """Three tensors that hold a batch.

    Args:
        layout: of the records.
        steps: [B, W * words] int64, a record for each row of a window.
        items: [B, words] int64, a record for each item.
        numbers: [20 B] uint8: lengths [B] int64, prefixes [B] int64 and weights [B] f32 one behind the other.
    """

    def __init__(self, layout: RecordLayout, steps: torch.Tensor, items: torch.Tensor, numbers: torch.Tensor) -> None:
        self.layout = layout
        self.steps = steps
        self.items = items
        self.numbers = numbers

    @classmethod
    def allocate(cls, layout: RecordLayout, batch_size: int, device: torch.device, *, pinned: bool) -> BatchMemory:
        """Memory of zeros; pinned means nothing elsewhere than on the host."""

        def zeros(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device, pin_memory=pinned and device == CPU)

        return cls(
            layout,
            steps=zeros(batch_size, layout.signature.geometry.window * layout.step.num_words, dtype=torch.int64),
            items=zeros(batch_size, layout.item.num_words, dtype=torch.int64),
            numbers=zeros(batch_size * _BYTES_PER_ITEM, dtype=torch.uint8),
        )

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.steps, self.items, self.numbers

    def as_batch(self) -> WindowBatch:
        """Views of everything.

        Raises:
            SignatureError: torch has no type for a column.
        """
        layout, steps, size = self.layout, self.steps.view(torch.uint8), len(self.steps)
        lengths, prefixes, weights = torch.split(self.numbers, [8 * size, 8 * size, 4 * size])
        return WindowBatch(
            columns=_column_views(layout.step, steps.view(size, layout.signature.geometry.window, -1)),
            item_columns=_column_views(layout.item, self.items.view(torch.uint8)),
            lengths=lengths.view(torch.int64),
            prefixes=prefixes.view(torch.int64),
            weights=weights.view(torch.float32),
            memory=self,
        )

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> BatchMemory:
        """Memory of the same layout of which each tensor is the ``change`` of one here."""
        return BatchMemory(self.layout, change(self.steps), change(self.items), change(self.numbers))


#: A length, a prefix and a weight.
_BYTES_PER_ITEM = 8 + 8 + 4


def _column_views(record: Record, records: torch.Tensor) -> dict[str, torch.Tensor]:
    """Columns [..., *column.shape] of uint8 records [..., bytes]; errors as :func:`torch_dtype`."""
    views = {}
    for column, begin in zip(record.columns, record.begins, strict=True):
        values = records[..., begin : begin + column.value_bytes].view(torch_dtype(column))
        views[column.name] = values.view(*values.shape[:-1], *column.shape) if column.shape else values.squeeze(-1)
    return views


def torch_dtype(column: ColumnSpec) -> torch.dtype:
    """The torch type of a column.

    Raises:
        SignatureError: torch has none.
    """
    try:
        return torch.from_numpy(np.empty(0, dtype=column.dtype)).dtype
    except (TypeError, ValueError) as error:
        raise SignatureError(f"column {column.name!r}: dtype {column.dtype!r} has no torch type") from error


class BatchBuffer:
    """Memory of one batch, allocated once.

    Its mirror's ``gather`` (:mod:`apexrl.experience.mirror`, :mod:`apexrl.experience.device_mirror`) writes the
    records, ``lengths`` and ``prefixes``; ``keys``, ``shards`` and ``weights`` are the caller's to set.

    Args:
        signature: of the table.
        batch_size: B.
        device: where the batch is trained on. What is written on the host meanwhile, :meth:`upload` copies there.

    Raises:
        SignatureError: torch has no type for a column.
    """

    def __init__(self, signature: Signature, batch_size: int, device: torch.device = CPU) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, must be at least 1")
        self.batch_size = batch_size
        self.device = device
        self.ready: torch.cuda.Event | None = None
        """Set by who fills the records on a stream of its own: the moment from which they are whole."""
        pinned = torch.cuda.is_available()
        self.memory = BatchMemory.allocate(RecordLayout(signature), batch_size, device, pinned=pinned)
        self._batch = self.memory.as_batch()
        numbers = self.memory.numbers
        self._host = numbers if device == CPU else torch.zeros(numbers.shape, dtype=torch.uint8, pin_memory=pinned)
        host, end = self._host.numpy(), 16 * batch_size
        #: [B], over host memory.
        self.lengths: npt.NDArray[np.int64] = host[: end // 2].view(np.int64)
        self.prefixes: npt.NDArray[np.int64] = host[end // 2 : end].view(np.int64)
        self.weights: npt.NDArray[np.float32] = host[end:].view(np.float32)
        #: [B] u64; they name the items when their new priorities come back, and stay on the host.
        self.keys = np.zeros(batch_size, dtype=np.uint64)
        #: [B] which shard each key is of.
        self.shards = np.zeros(batch_size, dtype=np.uint16)

    @property
    def num_bytes(self) -> int:
        """Bytes of all records."""
        return self.memory.steps.nbytes + self.memory.items.nbytes

    def as_window_batch(self) -> WindowBatch:
        """The batch as tensors on ``device``, over this buffer's memory: valid until the buffer is written again.

        On CUDA the current stream waits for :attr:`ready`; the host does not wait.
        """
        if self.ready is not None:
            torch.cuda.current_stream(self.device).wait_event(self.ready)
        return self._batch

    def upload(self) -> None:
        """Bring ``lengths``, ``prefixes`` and ``weights`` to the device, in the order of the current stream."""
        if self.memory.numbers is not self._host:
            self.memory.numbers.copy_(self._host, non_blocking=True)


class BatchRing:
    """A fixed number of batch buffers between the thread that fills them and the one that trains on them.

    Bounded by construction: who wants a buffer waits until one is released. All methods may be called by any thread.
    """

    def __init__(self, signature: Signature, batch_size: int, num_buffers: int, device: torch.device = CPU) -> None:
        if num_buffers < 1:
            raise ValueError(f"num_buffers is {num_buffers}, must be at least 1")
        buffers = [BatchBuffer(signature, batch_size, device) for _ in range(num_buffers)]
        #: By identity, which is looked up once per update on the trainer's thread.
        self._buffers = {id(buffer): buffer for buffer in buffers}
        self._free = dict(self._buffers)
        self._freed = threading.Condition()
        self._blocked_seconds = 0.0

    @property
    def num_buffers(self) -> int:
        return len(self._buffers)

    @property
    def num_acquired(self) -> int:
        """Buffers in use now."""
        with self._freed:
            return len(self._buffers) - len(self._free)

    @property
    def blocked_seconds(self) -> float:
        """Seconds that calls of :meth:`acquire` have waited, in all."""
        with self._freed:
            return self._blocked_seconds

    def acquire(self, timeout: float | None = None) -> BatchBuffer:
        """Take a free buffer, waiting for one if need be.

        Args:
            timeout: seconds to wait at most; None = as long as it takes.

        Raises:
            TimeoutError: no buffer became free in time.
        """
        with self._freed:
            began = time.monotonic()
            ready = self._freed.wait_for(lambda: bool(self._free), timeout)
            self._blocked_seconds += time.monotonic() - began
            if not ready:
                raise TimeoutError(f"none of {len(self._buffers)} batch buffers became free within {timeout} s")
            return self._free.popitem()[1]

    def release(self, buffer: BatchBuffer) -> None:
        """Give a buffer back; nothing may read it any more.

        Raises:
            ValueError: the buffer is not of this ring, or is free already.
        """
        with self._freed:
            if id(buffer) not in self._buffers:
                raise ValueError("the buffer is not one of this ring's")
            if id(buffer) in self._free:
                raise ValueError("the buffer is free already")
            self._free[id(buffer)] = buffer
            self._freed.notify()

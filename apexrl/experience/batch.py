"""Preallocated batches of windows, and the bounded ring that they go round in."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from apexrl.types import ColumnSpec, Scope, Signature, SignatureError

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

    def to(self, device: torch.device) -> WindowBatch:
        """The batch on ``device``; from pinned memory the copy is asynchronous."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def rows(self, rows: slice) -> WindowBatch:
        """Some windows of the batch, in the same memory."""
        return self._each(lambda tensor: tensor[rows])

    def tensors(self) -> list[torch.Tensor]:
        """All tensors, always in the same order."""
        return [*self.columns.values(), *self.item_columns.values(), self.lengths, self.prefixes, self.weights]

    def cloned(self) -> WindowBatch:
        """The batch in memory of its own."""
        return self._each(torch.clone)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> WindowBatch:
        return WindowBatch(
            columns={name: change(tensor) for name, tensor in self.columns.items()},
            item_columns={name: change(tensor) for name, tensor in self.item_columns.items()},
            lengths=change(self.lengths),
            prefixes=change(self.prefixes),
            weights=change(self.weights),
        )


def torch_dtype(column: ColumnSpec) -> torch.dtype:
    """The torch type of a column.

    Raises:
        SignatureError: torch has none.
    """
    try:
        return torch.from_numpy(np.empty(0, dtype=column.dtype)).dtype
    except (TypeError, ValueError) as error:
        raise SignatureError(f"column {column.name!r}: dtype {column.dtype!r} has no torch type") from error


def as_words(tensor: torch.Tensor, column: ColumnSpec) -> torch.Tensor:
    """The memory of a contiguous tensor of ``column``'s values as [values, words], in the widest words that divide one.

    Copying 84x84 frames by 8 bytes is several times as fast as byte by byte, and torch copies few unsigned types.
    """
    word_bytes = math.gcd(column.value_bytes, 8)
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[word_bytes]
    return tensor.view(-1, math.prod(column.shape)).view(words)


class BatchBuffer:
    """Memory of one batch, allocated once.

    Its mirror's ``gather`` (:mod:`apexrl.experience.mirror`, :mod:`apexrl.experience.device_mirror`) writes columns,
    ``lengths`` and ``prefixes``; ``keys``, ``shards`` and ``weights`` are the caller's to set.

    Args:
        signature: of the table.
        batch_size: B.
        device: where the batch is trained on. What is written on the host meanwhile, :meth:`upload` copies there.
    """

    def __init__(self, signature: Signature, batch_size: int, device: torch.device = CPU) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, must be at least 1")
        self.batch_size = batch_size
        self.device = device
        self.ready: torch.cuda.Event | None = None
        """Set by who fills the columns on a stream of its own: the moment from which they are whole."""
        pin = torch.cuda.is_available()
        window = signature.geometry.window
        self._columns: dict[str, torch.Tensor] = {}
        self._item_columns: dict[str, torch.Tensor] = {}
        #: name -> [values, words] over the memory of the columns, for a gather on their device.
        self.words: dict[str, torch.Tensor] = {}
        #: name -> [B, bytes] likewise, for a gather on the host; {} if the columns lie elsewhere.
        self.raw: dict[str, npt.NDArray[np.uint8]] = {}
        for column in signature.columns:
            step = column.scope is Scope.STEP
            shape = (batch_size, window, *column.shape) if step else (batch_size, *column.shape)
            tensor = torch.zeros(shape, dtype=torch_dtype(column), device=device, pin_memory=pin and device == CPU)
            (self._columns if step else self._item_columns)[column.name] = tensor
            self.words[column.name] = as_words(tensor, column)
            if device == CPU:
                self.raw[column.name] = tensor.numpy().reshape(batch_size, -1).view(np.uint8)
        # Host and device have the same layout, so that one copy takes all three over.
        host = torch.zeros(batch_size * _BYTES_PER_ITEM, dtype=torch.uint8, pin_memory=pin)
        self._host = host
        self._uploaded = host if device == CPU else torch.zeros_like(host, device=device)
        lengths, prefixes, weights = _item_views(host, batch_size)
        #: [B], over host memory.
        self.lengths: npt.NDArray[np.int64] = lengths.numpy()
        self.prefixes: npt.NDArray[np.int64] = prefixes.numpy()
        self.weights: npt.NDArray[np.float32] = weights.numpy()
        self._item_tensors = _item_views(self._uploaded, batch_size)
        #: [B] u64; they name the items when their new priorities come back, and stay on the host.
        self.keys = np.zeros(batch_size, dtype=np.uint64)
        #: [B] which shard each key is of.
        self.shards = np.zeros(batch_size, dtype=np.uint16)

    @property
    def num_bytes(self) -> int:
        """Bytes of all columns."""
        return sum(words.nbytes for words in self.words.values())

    def as_window_batch(self) -> WindowBatch:
        """The batch as tensors on ``device``, over this buffer's memory: valid until the buffer is written again.

        On CUDA the current stream waits for :attr:`ready`; the host does not wait.
        """
        if self.ready is not None:
            torch.cuda.current_stream(self.device).wait_event(self.ready)
        return WindowBatch(dict(self._columns), dict(self._item_columns), *self._item_tensors)

    def upload(self) -> None:
        """Bring ``lengths``, ``prefixes`` and ``weights`` to the device, in the order of the current stream."""
        if self._uploaded is not self._host:
            self._uploaded.copy_(self._host, non_blocking=True)


#: A length, a prefix and a weight.
_BYTES_PER_ITEM = 8 + 8 + 4


def _item_views(memory: torch.Tensor, batch_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Lengths [B] int64, prefixes [B] int64 and weights [B] f32, one behind the other in ``memory``."""
    first, second = 8 * batch_size, 16 * batch_size
    lengths, prefixes, weights = memory[:first], memory[first:second], memory[second:]
    return lengths.view(torch.int64), prefixes.view(torch.int64), weights.view(torch.float32)


class BatchRing:
    """A fixed number of batch buffers between the thread that fills them and the one that trains on them.

    Bounded by construction: who wants a buffer waits until one is released. All methods may be called by any thread.
    """

    def __init__(self, signature: Signature, batch_size: int, num_buffers: int, device: torch.device = CPU) -> None:
        if num_buffers < 1:
            raise ValueError(f"num_buffers is {num_buffers}, must be at least 1")
        self._buffers = [BatchBuffer(signature, batch_size, device) for _ in range(num_buffers)]
        self._free = list(self._buffers)
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
            return self._free.pop()

    def release(self, buffer: BatchBuffer) -> None:
        """Give a buffer back; nothing may read it any more.

        Raises:
            ValueError: the buffer is not of this ring, or is free already.
        """
        with self._freed:
            if not any(buffer is own for own in self._buffers):
                raise ValueError("the buffer is not one of this ring's")
            if any(buffer is free for free in self._free):
                raise ValueError("the buffer is free already")
            self._free.append(buffer)
            self._freed.notify()
